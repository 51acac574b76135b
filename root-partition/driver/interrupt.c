// SPDX-License-Identifier: GPL-2.0
/*
 * Message-signalled interrupts into a guest.
 *
 * The usual one, fixed to one virtual CPU, is a bit in that CPU's page. For the others the
 * microvisor knows the rules.
 */
#include <linux/bitops.h>
#include <linux/bits.h>
#include <linux/rcupdate.h>
#include <linux/uaccess.h>

#include "hypercall.h"
#include "interrupt.h"
#include "partition.h"
#include "vcpu.h"

/* Fields of a message's address and data (APM vol. 2, 16.11). */
#define ADDRESS_BASE 0xfee00000ULL
#define ADDRESS_BASE_MASK (~0xfffffULL)
#define ADDRESS_LOGICAL BIT(2)
#define ADDRESS_HINT BIT(3)
#define ADDRESS_DESTINATION(address) ((u8)((address) >> 12))
#define DATA_VECTOR(data) ((u8)(data))
#define DATA_MODE GENMASK(10, 8)
#define DATA_LEVEL BIT(15)
/* Vectors below are exceptions. */
#define LEAST_VECTOR 16

bool mv_msi_is_valid(u64 address, u64 data)
{
	return (address & ADDRESS_BASE_MASK) == ADDRESS_BASE && data <= U32_MAX;
}

/* Posts an interrupt, in the order that the ABI asks for. */
static void post(struct mv_vcpu *vcpu, u8 vector, bool level)
{
	struct mv_posted_interrupts *posted = &vcpu->shared->posted;

	if (level)
		set_bit(vector, (unsigned long *)posted->level);
	smp_mb__after_atomic();
	set_bit(vector, (unsigned long *)posted->pending);
	/* Who set it first wakes the virtual CPU, which takes all bits then. */
	if (xchg(&posted->outstanding, 1) == 0)
		mv_vcpu_wake(vcpu);
}

static bool is_fixed_physical(u64 address, u64 data)
{
	return !(address & (ADDRESS_LOGICAL | ADDRESS_HINT)) && !(data & DATA_MODE) &&
	       ADDRESS_DESTINATION(address) < MV_MAX_VCPUS && DATA_VECTOR(data) >= LEAST_VECTOR;
}

int mv_msi_deliver(struct mv_partition *partition, u64 address, u64 data)
{
	u64 set;
	int error;

	if (is_fixed_physical(address, data)) {
		/* Pairs with its making in vcpu.c. */
		unsigned int index = ADDRESS_DESTINATION(address);
		struct mv_vcpu *vcpu = smp_load_acquire(&partition->vcpus[index]);

		/* As on a bus: a message to nobody is lost. */
		if (vcpu)
			post(vcpu, DATA_VECTOR(data), data & DATA_LEVEL);
		return 0;
	}
	error = mv_call3(MV_CALL_INTERRUPT_SEND, partition->id, address, data, &set);
	if (!error)
		mv_vcpus_wake(partition, set);
	return error;
}

long mv_msi(struct mv_partition *partition, struct mv_msi __user *user)
{
	struct mv_msi msi;
	long error;

	if (copy_from_user(&msi, user, sizeof(msi)))
		return -EFAULT;
	if (!mv_msi_is_valid(msi.address, msi.data))
		return -EINVAL;
	rcu_read_lock();
	error = mv_partition_ended(partition) ? -ENODEV :
						mv_msi_deliver(partition, msi.address, msi.data);
	rcu_read_unlock();
	return error;
}
