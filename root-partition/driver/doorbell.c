// SPDX-License-Identifier: GPL-2.0
/*
 * Doorbells: eventfds that are signalled when a posted write finds its consumer asleep.
 *
 * The ranges are the microvisor's business; here are the eventfds, by tag.
 */
#include <linux/eventfd.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "doorbell.h"
#include "hypercall.h"
#include "vm.h"

void mv_doorbell_ring(struct mv_vm *vm, u16 tag)
{
	struct eventfd_ctx *eventfd;

	rcu_read_lock();
	eventfd = xa_load(&vm->doorbells, tag);
	if (eventfd)
		mv_eventfd_signal(eventfd);
	rcu_read_unlock();
}

static u64 packed(const struct mv_doorbell *wanted)
{
	return wanted->space | wanted->flags << 8 | (u64)wanted->length << 16;
}

static int add(struct mv_vm *vm, const struct mv_doorbell *wanted)
{
	struct eventfd_ctx *eventfd;
	int error;

	/* The call has 16 bits for it. */
	if (wanted->length > U16_MAX)
		return -ERANGE;
	eventfd = eventfd_ctx_fdget(wanted->eventfd);
	if (IS_ERR(eventfd))
		return PTR_ERR(eventfd);
	/* First, so that it is there when the first write is. */
	error = xa_insert(&vm->doorbells, wanted->tag, eventfd, GFP_KERNEL_ACCOUNT);
	if (error) {
		eventfd_ctx_put(eventfd);
		return error == -EBUSY ? -EADDRINUSE : error;
	}
	if (wanted->tag == MV_DOORBELL_TAG_EOI)
		return 0;
	error = mv_call4(MV_CALL_DOORBELL_ADD, vm->id, packed(wanted), wanted->base, wanted->tag,
			 NULL);
	if (error) {
		xa_erase(&vm->doorbells, wanted->tag);
		synchronize_rcu();
		eventfd_ctx_put(eventfd);
	}
	return error;
}

static int remove(struct mv_vm *vm, u16 tag)
{
	struct eventfd_ctx *eventfd = xa_load(&vm->doorbells, tag);
	int error = 0;

	if (!eventfd)
		return -ENOENT;
	if (tag != MV_DOORBELL_TAG_EOI)
		error = mv_call2(MV_CALL_DOORBELL_REMOVE, vm->id, tag, NULL);
	if (error)
		return error;
	xa_erase(&vm->doorbells, tag);
	synchronize_rcu();
	eventfd_ctx_put(eventfd);
	return 0;
}

long mv_doorbell(struct mv_vm *vm, struct mv_doorbell __user *user)
{
	struct mv_doorbell wanted;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	if (wanted.reserved || wanted.reserved2 || wanted.eventfd < -1)
		return -EINVAL;
	error = mv_vm_lock(vm);
	if (error)
		return error;
	error = wanted.eventfd == -1 ? remove(vm, wanted.tag) : add(vm, &wanted);
	mv_vm_unlock(vm);
	return error;
}

void mv_doorbells_remove(struct mv_vm *vm)
{
	struct eventfd_ctx *eventfd;
	unsigned long tag;

	lockdep_assert_held(&vm->lock);
	if (xa_empty(&vm->doorbells))
		return;
	xa_for_each(&vm->doorbells, tag, eventfd) {
		/* If it fails the range stays posted, to nobody. */
		if (tag != MV_DOORBELL_TAG_EOI)
			mv_call2(MV_CALL_DOORBELL_REMOVE, vm->id, tag, NULL);
	}
	/* No virtual CPU runs on behalf of who had bound them. */
	xa_for_each(&vm->doorbells, tag, eventfd) {
		xa_erase(&vm->doorbells, tag);
		eventfd_ctx_put(eventfd);
	}
}
