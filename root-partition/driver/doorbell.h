/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Doorbells: eventfds that are signalled when a posted write finds its consumer asleep.
 */
#ifndef MV_DOORBELL_H
#define MV_DOORBELL_H

#include "microvisor_abi.h"

struct mv_partition;

long mv_doorbell(struct mv_partition *partition, struct mv_doorbell __user *user);

/* The argument of the ioctl is an eventfd, or -1. */
long mv_eoi_eventfd(struct mv_partition *partition, unsigned long argument);

/* Signals the eventfd of a tag, if it has one. */
void mv_doorbell_ring(struct mv_partition *partition, u16 tag);

/* Removes all. Under partition->lock. */
void mv_doorbells_remove(struct mv_partition *partition);

#endif
