/*
 * Prints the time-stamp counter, which counts instructions in the benchmarks' machines. `ticks begin` and `ticks end` execute
 * the marks of the plugin that counts instructions (xtask/src/bench/profile.c).
 */
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "begin"))
		__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x62, 0x65, 0x67, 0x7f");
	else if (argc > 1 && !strcmp(argv[1], "end"))
		__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00, 0x65, 0x6e, 0x64, 0x7f");
	else
		printf("%llu\n", __rdtsc());
	return 0;
}
