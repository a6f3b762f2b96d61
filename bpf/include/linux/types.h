/* The integer types of bcc's own copy of uapi/linux/bpf.h and of its helpers.h. LP64, as every BPF target is. */
#pragma once
typedef signed char __s8, s8;
typedef unsigned char __u8, u8;
typedef short __s16, s16;
typedef unsigned short __u16, u16, __be16, __sum16;
typedef int __s32, s32;
typedef unsigned int __u32, u32, __be32, __wsum;
typedef long long __s64, s64;
typedef unsigned long long __u64, u64, __be64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
enum { false, true };
#define __aligned_u64 __u64 __attribute__((aligned(8)))
