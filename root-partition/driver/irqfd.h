/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Eventfds that deliver an interrupt when they are signalled.
 */
#ifndef MV_IRQFD_H
#define MV_IRQFD_H

#include "microvisor_abi.h"

struct mv_vm;

long mv_irqfd(struct mv_vm *vm, struct mv_irq_fd __user *user);

/* Unbinds all. Under vm->lock. */
void mv_irqfds_remove(struct mv_vm *vm);

#endif
