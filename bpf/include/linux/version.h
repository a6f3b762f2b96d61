/* helpers.h compares this with 4.8 and stores it where kernels before 5.0 looked for it; nothing else depends on it. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
