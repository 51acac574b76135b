/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Eventfds that deliver an interrupt when they are signalled.
 */
#ifndef MV_IRQFD_H
#define MV_IRQFD_H

#include "microvisor_abi.h"

struct mv_partition;

long mv_irqfd(struct mv_partition *partition, struct mv_irq_fd __user *user);

/* Unbinds all. Under partition->lock. */
void mv_irqfds_remove(struct mv_partition *partition);

#endif
