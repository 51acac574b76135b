// SPDX-License-Identifier: GPL-2.0
/*
 * Eventfds that deliver an interrupt when they are signalled.
 *
 * Each is an entry of the eventfd's wait queue, whose function delivers the interrupt in the
 * context of whoever signals. Taking it off the queue waits for a function that runs.
 */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "interrupt.h"
#include "irqfd.h"
#include "partition.h"

/* More than any guest has vectors for. */
#define MOST_IRQFDS 4096

struct irqfd {
	struct list_head link;
	struct mv_partition *partition;
	struct eventfd_ctx *eventfd;
	wait_queue_entry_t wait;
	poll_table table;
	/* Nobody has the eventfd open any more. */
	bool closed;
	/* The message may change while the eventfd is signalled. */
	spinlock_t lock;
	u64 address;
	u64 data;
};

static void deliver(struct irqfd *irqfd)
{
	unsigned long flags;
	u64 address, data;

	spin_lock_irqsave(&irqfd->lock, flags);
	address = irqfd->address;
	data = irqfd->data;
	spin_unlock_irqrestore(&irqfd->lock, flags);
	/* Whether the guest takes it is not the signaller's business. */
	mv_msi_deliver(irqfd->partition, address, data);
}

/* The eventfd was signalled: with its queue's lock held, interrupts disabled. */
static int signalled(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct irqfd *irqfd = container_of(wait, struct irqfd, wait);
	__poll_t events = key_to_poll(key);
	u64 count;

	if (events & EPOLLHUP)
		WRITE_ONCE(irqfd->closed, true);
	if (!(events & EPOLLIN))
		return 0;
	/* Or its counter would overflow one day. */
	eventfd_ctx_do_read(irqfd->eventfd, &count);
	deliver(irqfd);
	return 1;
}

static void enqueue(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	struct irqfd *irqfd = container_of(table, struct irqfd, table);

	/* Before those who read the eventfd. */
	add_wait_queue_priority(queue, &irqfd->wait);
}

static void unbind(struct mv_partition *partition, struct irqfd *irqfd)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->eventfd, &irqfd->wait, &count);
	list_del(&irqfd->link);
	partition->irqfd_count--;
	eventfd_ctx_put(irqfd->eventfd);
	kfree(irqfd);
}

static struct irqfd *find(struct mv_partition *partition, struct eventfd_ctx *eventfd)
{
	struct irqfd *irqfd;

	list_for_each_entry(irqfd, &partition->irqfds, link) {
		if (irqfd->eventfd == eventfd)
			return irqfd;
	}
	return NULL;
}

/* Those that cannot be signalled any more, and that nobody can name to unbind. */
static void sweep(struct mv_partition *partition)
{
	struct irqfd *irqfd, *next;

	list_for_each_entry_safe(irqfd, next, &partition->irqfds, link) {
		if (READ_ONCE(irqfd->closed))
			unbind(partition, irqfd);
	}
}

/* Binds an eventfd that is not bound. Takes over the reference to it. */
static int bind(struct mv_partition *partition, struct file *file, struct eventfd_ctx *eventfd,
		const struct mv_irq_fd *wanted)
{
	struct irqfd *irqfd;

	if (partition->irqfd_count == MOST_IRQFDS)
		return -ENOSPC;
	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return -ENOMEM;
	irqfd->partition = partition;
	irqfd->eventfd = eventfd;
	irqfd->address = wanted->address;
	irqfd->data = wanted->data;
	spin_lock_init(&irqfd->lock);
	init_waitqueue_func_entry(&irqfd->wait, signalled);
	init_poll_funcptr(&irqfd->table, enqueue);
	list_add(&irqfd->link, &partition->irqfds);
	partition->irqfd_count++;
	/* Polling is what puts it on the queue; what was signalled before then is delivered now. */
	if (vfs_poll(file, &irqfd->table) & EPOLLIN)
		deliver(irqfd);
	return 0;
}

static void rebind(struct irqfd *irqfd, const struct mv_irq_fd *wanted)
{
	unsigned long flags;

	spin_lock_irqsave(&irqfd->lock, flags);
	irqfd->address = wanted->address;
	irqfd->data = wanted->data;
	spin_unlock_irqrestore(&irqfd->lock, flags);
}

/* Takes over the reference to the eventfd if it answers 0 and the eventfd was not bound. */
static int change(struct mv_partition *partition, struct file *file, struct eventfd_ctx *eventfd,
		  const struct mv_irq_fd *wanted, bool *taken)
{
	struct irqfd *irqfd = find(partition, eventfd);
	int error;

	if (wanted->remove) {
		if (!irqfd)
			return -ENOENT;
		unbind(partition, irqfd);
		return 0;
	}
	if (irqfd) {
		rebind(irqfd, wanted);
		return 0;
	}
	error = bind(partition, file, eventfd, wanted);
	*taken = !error;
	return error;
}

long mv_irqfd(struct mv_partition *partition, struct mv_irq_fd __user *user)
{
	struct eventfd_ctx *eventfd;
	struct mv_irq_fd wanted;
	bool taken = false;
	struct file *file;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	if (wanted.reserved || wanted.remove > 1 ||
	    (!wanted.remove && !mv_msi_is_valid(wanted.address, wanted.data)))
		return -EINVAL;
	file = eventfd_fget(wanted.eventfd);
	if (IS_ERR(file))
		return PTR_ERR(file);
	eventfd = eventfd_ctx_fileget(file);
	error = mv_partition_lock(partition);
	if (!error) {
		sweep(partition);
		error = change(partition, file, eventfd, &wanted, &taken);
		mv_partition_unlock(partition);
	}
	if (!taken)
		eventfd_ctx_put(eventfd);
	fput(file);
	return error;
}

void mv_irqfds_remove(struct mv_partition *partition)
{
	struct irqfd *irqfd, *next;

	lockdep_assert_held(&partition->lock);
	list_for_each_entry_safe(irqfd, next, &partition->irqfds, link)
		unbind(partition, irqfd);
}
