/*
 * sockets32: makes sockets as old 32-bit programs do. A 64-bit program that traps with int 0x80 enters the table of
 * i386 calls, so that no 32-bit libc is needed. Prints, for each family given, what socket(2) and socketcall(2)
 * answer: 0, or the error's number.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __x86_64__
enum { I386_SOCKETCALL = 102, I386_SOCKET = 359, SYS_SOCKET = 1, STREAM = 1 };

static long i386(long call, uintptr_t one, uintptr_t two, uintptr_t three)
{
    long answer;
    __asm__ volatile("int $0x80"
                     : "=a"(answer)
                     : "a"(call), "b"(one), "c"(two), "d"(three)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)answer;
}

static long told(long answer)
{
    if (answer < 0)
        return -answer;
    close((int)answer);
    return 0;
}

int main(int count, char **families)
{
    /* Static, and so below 4 GiB: a 32-bit call sees no other address. */
    static uint32_t arguments[3];
    for (int i = 1; i < count; i++) {
        uint32_t family = (uint32_t)atoi(families[i]);
        long direct = told(i386(I386_SOCKET, family, STREAM, 0));
        arguments[0] = family;
        arguments[1] = STREAM;
        arguments[2] = 0;
        long by_socketcall = told(i386(I386_SOCKETCALL, SYS_SOCKET, (uintptr_t)arguments, 0));
        printf("%u %ld %ld\n", (unsigned)family, direct, by_socketcall);
    }
    return 0;
}
#else
int main(void)
{
    return 0;
}
#endif
