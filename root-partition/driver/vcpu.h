/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A virtual CPU: its page, and the thread that runs it.
 *
 * Waking. Whoever has something for a virtual CPU makes it visible, then calls mv_vcpu_wake. The
 * running thread clears `wake`, sets `place`, and only then looks and enters the guest; so either
 * it sees what was made visible, or the waker sees that it is inside and interrupts it.
 */
#ifndef MV_VCPU_H
#define MV_VCPU_H

#include <linux/hrtimer.h>
#include <linux/mutex.h>
#include <linux/wait.h>

#include "microvisor_abi.h"

struct mv_attachment;
struct mv_partition;

/* Where the thread that runs a virtual CPU is. */
enum mv_place {
	MV_OUTSIDE,
	/* In the guest, or on the way in, with interrupts disabled. */
	MV_INSIDE,
	/* The same, and an interrupt is on its way to it. */
	MV_INTERRUPTED,
};

struct mv_vcpu {
	struct mv_partition *partition;
	u32 index;
	struct page *page;
	struct mv_vcpu_page *shared;

	/* Held by whoever runs it or changes its state: one at a time, others get EBUSY. */
	struct mutex lock;
	/* Runs by the worker, and when the last one began, in jiffies. */
	u64 runs;
	unsigned long entered;

	enum mv_place place;
	int cpu;
	/* Something happened since the guest was last entered. */
	int wake;
	/* A run is to return. */
	int kick;
	/* Where the thread waits while the guest halts. */
	wait_queue_head_t halted;
	/* Wakes it at root's TSC `armed`, which is 0 when the timer does not run. */
	struct hrtimer timer;
	u64 armed;
};

/* Opens a virtual CPU, and makes it if it is new: an fd. */
long mv_vcpu_open(struct mv_attachment *attachment, u64 index);

/* Runs it until its guest needs the worker. Under vcpu->lock. */
long mv_vcpu_run(struct mv_vcpu *vcpu);

/* There is something for it: it runs again if it halts, and looks if it runs. In any context. */
void mv_vcpu_wake(struct mv_vcpu *vcpu);

/* The same for each in the set. */
void mv_vcpus_wake(struct mv_partition *partition, u64 set);

/* Makes each run return. */
void mv_vcpus_kick(struct mv_partition *partition);

/* Waits until no virtual CPU of an ended partition runs; none does again. */
void mv_vcpus_stop(struct mv_partition *partition);

unsigned int mv_vcpus_count(struct mv_partition *partition);
void mv_vcpus_free(struct mv_partition *partition);

/* What the virtual CPU's timer does. */
enum hrtimer_restart mv_vcpu_timer(struct hrtimer *timer);

#endif
