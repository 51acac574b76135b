/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The process that is attached to a partition, by its fds of the partition and its virtual CPUs.
 *
 * One process at a time. It stops being attached when it has closed the last of them, or is dead:
 * fds that a child inherited or another process was sent answer EPERM, and keep nobody out.
 */
#ifndef MV_ATTACHMENT_H
#define MV_ATTACHMENT_H

#include <linux/kref.h>
#include <linux/types.h>

struct file;
struct mv_partition;

struct mv_attachment {
	/* Its fds. */
	struct kref references;
	struct mv_partition *partition;
	/* The process, as its thread group. */
	struct pid *worker;
};

/*
 * Attaches the calling process: an fd, and its file for the caller to install. EBUSY while
 * another living process is attached. Under mv_partitions_lock.
 */
long mv_attach(struct mv_partition *partition, struct file **file);

/* Whether a living process other than the caller is attached. Under mv_partitions_lock. */
bool mv_attached_elsewhere(struct mv_partition *partition);

/* The attached process, as the caller numbers it; 0 for none. Under mv_partitions_lock. */
u32 mv_attached_worker(struct mv_partition *partition);

/* 0, ENODEV where the partition has ended, or EPERM where the caller is not who is attached. */
int mv_attachment_check(struct mv_attachment *attachment);

void mv_attachment_put(struct mv_attachment *attachment);

#endif
