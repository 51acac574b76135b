/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The hypercall instruction. Nothing else in this driver, and nobody else in this kernel, makes
 * hypercalls.
 *
 * They do not sleep and may be made in any context. Only vcpu_run clobbers more than the registers
 * named here: its caller owns the vector registers.
 */
#ifndef MV_HYPERCALL_H
#define MV_HYPERCALL_H

#include <linux/err.h>
#include <linux/types.h>
#include <asm/page.h>

#include "microvisor_abi.h"

/* Answers 0 or a negative errno: a status is the number of the errno that means the same. */
static inline int mv_hypercall(u64 number, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 *value)
{
	register u64 r10 asm("r10") = a3;
	register u64 r8 asm("r8") = a4;
	s64 status;

	asm volatile("vmmcall"
		     : "=a" (status), "+d" (a2)
		     : "a" (number), "D" (a0), "S" (a1), "r" (r10), "r" (r8)
		     : "memory", "cc");
	if (value)
		*value = a2;
	if (status > 0 || status < -MAX_ERRNO)
		return -EIO;
	return status;
}

#define mv_call0(number, value) \
	mv_hypercall(number, 0, 0, 0, 0, 0, value)
#define mv_call1(number, a0, value) \
	mv_hypercall(number, a0, 0, 0, 0, 0, value)
#define mv_call2(number, a0, a1, value) \
	mv_hypercall(number, a0, a1, 0, 0, 0, value)
#define mv_call3(number, a0, a1, a2, value) \
	mv_hypercall(number, a0, a1, a2, 0, 0, value)
#define mv_call4(number, a0, a1, a2, a3, value) \
	mv_hypercall(number, a0, a1, a2, a3, 0, value)

/* The page frame of an address in the kernel's direct map. */
#define mv_pfn(address) (__pa(address) >> PAGE_SHIFT)

#endif
