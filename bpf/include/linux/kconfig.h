/* bcc's loader looks for this very file to know the tree, and its helpers.h refuses to compile without the option. */
#define CONFIG_BPF_SYSCALL 1
