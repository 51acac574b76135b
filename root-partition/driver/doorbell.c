// SPDX-License-Identifier: GPL-2.0
/*
 * Doorbells: eventfds that are signalled when a posted write finds its consumer asleep.
 *
 * The microvisor has the ranges; here are the eventfds, by tag. The end of a level-triggered
 * interrupt has a tag of its own, and no range.
 */
#include <linux/eventfd.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "doorbell.h"
#include "hypercall.h"
#include "partition.h"

void mv_doorbell_ring(struct mv_partition *partition, u16 tag)
{
	struct eventfd_ctx *eventfd;

	rcu_read_lock();
	eventfd = xa_load(&partition->doorbells, tag);
	if (eventfd)
		mv_eventfd_signal(eventfd);
	rcu_read_unlock();
}

/* Has the eventfd of the worker's signalled for this tag. */
static int bind(struct mv_partition *partition, u16 tag, int fd)
{
	struct eventfd_ctx *eventfd = eventfd_ctx_fdget(fd);
	int error;

	if (IS_ERR(eventfd))
		return PTR_ERR(eventfd);
	error = xa_insert(&partition->doorbells, tag, eventfd, GFP_KERNEL_ACCOUNT);
	if (error)
		eventfd_ctx_put(eventfd);
	return error == -EBUSY ? -EADDRINUSE : error;
}

static int unbind(struct mv_partition *partition, u16 tag)
{
	struct eventfd_ctx *eventfd = xa_erase(&partition->doorbells, tag);

	if (!eventfd)
		return -ENOENT;
	synchronize_rcu();
	eventfd_ctx_put(eventfd);
	return 0;
}

static int add(struct mv_partition *partition, const struct mv_doorbell *wanted)
{
	int error;

	/* First, so that it is there when the first write is. */
	error = bind(partition, wanted->tag, wanted->eventfd);
	if (error)
		return error;
	error = mv_hypercall(MV_CALL_DOORBELL_ADD, partition->id, wanted->port, wanted->length,
			     wanted->tag, wanted->flags, NULL);
	if (error)
		unbind(partition, wanted->tag);
	return error;
}

static int remove(struct mv_partition *partition, u16 tag)
{
	int error;

	if (!xa_load(&partition->doorbells, tag))
		return -ENOENT;
	error = mv_call2(MV_CALL_DOORBELL_REMOVE, partition->id, tag, NULL);
	return error ? error : unbind(partition, tag);
}

long mv_doorbell(struct mv_partition *partition, struct mv_doorbell __user *user)
{
	struct mv_doorbell wanted;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	if (wanted.eventfd < -1)
		return -EINVAL;
	if (wanted.tag >= MV_DOORBELL_TAG_EOI)
		return -ERANGE;
	error = mv_partition_lock(partition);
	if (error)
		return error;
	error = wanted.eventfd == -1 ? remove(partition, wanted.tag) : add(partition, &wanted);
	mv_partition_unlock(partition);
	return error;
}

long mv_eoi_eventfd(struct mv_partition *partition, unsigned long argument)
{
	int fd = argument;
	long error;

	if (argument != fd || fd < -1)
		return -EINVAL;
	error = mv_partition_lock(partition);
	if (error)
		return error;
	error = fd == -1 ? unbind(partition, MV_DOORBELL_TAG_EOI) :
			   bind(partition, MV_DOORBELL_TAG_EOI, fd);
	mv_partition_unlock(partition);
	return error;
}

void mv_doorbells_remove(struct mv_partition *partition)
{
	struct eventfd_ctx *eventfd;
	unsigned long tag;

	lockdep_assert_held(&partition->lock);
	if (xa_empty(&partition->doorbells))
		return;
	xa_for_each(&partition->doorbells, tag, eventfd) {
		/* If it fails the range stays posted, to nobody. */
		if (tag != MV_DOORBELL_TAG_EOI)
			mv_call2(MV_CALL_DOORBELL_REMOVE, partition->id, tag, NULL);
	}
	/* No virtual CPU runs on behalf of who had bound them. */
	xa_for_each(&partition->doorbells, tag, eventfd) {
		xa_erase(&partition->doorbells, tag);
		eventfd_ctx_put(eventfd);
	}
}
