// SPDX-License-Identifier: GPL-2.0
/*
 * Running a virtual CPU: what its thread does between the worker's calls.
 */
#include <linux/interrupt.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/vtime.h>
/* smp_send_reschedule is a macro that traces. */
#include <trace/events/ipi.h>
#include <asm/fpu/api.h>
#include <asm/tsc.h>

#include "doorbell.h"
#include "hypercall.h"
#include "memory.h"
#include "partition.h"
#include "pool.h"
#include "vcpu.h"

/* What vcpu_run answers. */
#define RUN_EXIT(answer) ((u8)(answer))
#define RUN_TAG(answer) ((u16)((answer) >> 16))

/* The farthest that a timer is set; what is later is looked at again then. */
#define FARTHEST_SECONDS 3600
/* The longest that work which waits for the thread's return to user space waits for it. */
#define LONGEST_STAY (HZ / 100 + 1)

void mv_vcpu_wake(struct mv_vcpu *vcpu)
{
	WRITE_ONCE(vcpu->wake, 1);
	/* Orders that, and what the caller made visible, before the look at `place`; pairs with
	 * take_turn, and for the queue with what waiting itself does.
	 */
	smp_mb();
	if (cmpxchg(&vcpu->place, MV_INSIDE, MV_INTERRUPTED) == MV_INSIDE)
		smp_send_reschedule(READ_ONCE(vcpu->cpu));
	else if (waitqueue_active(&vcpu->halted))
		wake_up(&vcpu->halted);
}

enum hrtimer_restart mv_vcpu_timer(struct hrtimer *timer)
{
	struct mv_vcpu *vcpu = container_of(timer, struct mv_vcpu, timer);

	WRITE_ONCE(vcpu->armed, 0);
	mv_vcpu_wake(vcpu);
	return HRTIMER_NORESTART;
}

/* Has the thread woken when root's TSC reaches `deadline`. */
static void arm(struct mv_vcpu *vcpu, u64 deadline)
{
	u64 now = rdtsc_ordered();
	u64 ticks = deadline > now ? deadline - now : 0;

	ticks = min(ticks, (u64)tsc_khz * 1000 * FARTHEST_SECONDS);
	WRITE_ONCE(vcpu->armed, deadline);
	hrtimer_start(&vcpu->timer, ns_to_ktime(mul_u64_u32_div(ticks, NSEC_PER_MSEC, tsc_khz)),
		      HRTIMER_MODE_REL_PINNED);
}

/*
 * Keeps the timer at or before the deadline that the microvisor told last. One that is too early
 * only wakes in vain, once; so a guest that moves its deadline on and on does not cost a change
 * of the timer each time.
 */
static void keep_timer(struct mv_vcpu *vcpu)
{
	u64 deadline = READ_ONCE(vcpu->shared->intercept.deadline);
	u64 armed = READ_ONCE(vcpu->armed);

	if (deadline && (armed == 0 || deadline < armed))
		arm(vcpu, deadline);
}

/* The guest's turn itself, with interrupts disabled. */
static int enter(struct mv_vcpu *vcpu, u64 *answer)
{
	int error;

	kernel_fpu_begin();
	vtime_account_guest_enter();
	error = mv_call2(MV_CALL_VCPU_RUN, vcpu->partition->id, vcpu->index, answer);
	kernel_fpu_end();
	/* The interrupt that ended the turn is taken here; a tick so counts as the guest's. */
	WRITE_ONCE(vcpu->place, MV_OUTSIDE);
	local_irq_enable();
	local_irq_disable();
	vtime_account_guest_exit();
	return error;
}

/* Enters the guest until something needs root, unless something else is to be done before. */
static int take_turn(struct mv_vcpu *vcpu, u64 *answer)
{
	int error = 0;

	local_irq_disable();
	WRITE_ONCE(vcpu->cpu, smp_processor_id());
	xchg(&vcpu->wake, 0);
	/* Pairs with mv_vcpu_wake. */
	smp_store_mb(vcpu->place, MV_INSIDE);
	if (signal_pending(current) || need_resched() || READ_ONCE(vcpu->kick) ||
	    mv_partition_ended(vcpu->partition))
		*answer = MV_RUN_INTERRUPT;
	else
		error = enter(vcpu, answer);
	WRITE_ONCE(vcpu->place, MV_OUTSIDE);
	local_irq_enable();
	return error;
}

/* The guest halts: waits until there is something for it. */
static void wait_halted(struct mv_vcpu *vcpu, u64 deadline)
{
	if (deadline && deadline != READ_ONCE(vcpu->armed))
		arm(vcpu, deadline);
	/* A signal ends it too, which the way back to the guest looks for. */
	wait_event_interruptible(vcpu->halted, READ_ONCE(vcpu->wake) || READ_ONCE(vcpu->kick) ||
				 mv_partition_ended(vcpu->partition));
}

/*
 * The guest needs an answer. 1: it was given here; 0: the worker has to. The page is the worker's
 * to write too: each field is read once, and believed no further than is harmless.
 */
static int intercept(struct mv_vcpu *vcpu)
{
	const struct mv_intercept *what = &vcpu->shared->intercept;

	if (READ_ONCE(what->kind) != MV_INTERCEPT_MEMORY)
		return 0;
	return mv_memory_fault(vcpu->partition, READ_ONCE(what->address),
			       READ_ONCE(what->error_code));
}

/* Follows what the guest's turn ended with. 1: it can go on; 0: it is the worker's turn. */
static int follow(struct mv_vcpu *vcpu, u64 answer)
{
	const struct mv_intercept *told = &vcpu->shared->intercept;

	switch (RUN_EXIT(answer)) {
	case MV_RUN_INTERRUPT:
	case MV_RUN_TIMER:
		return 1;
	case MV_RUN_INTERCEPT:
		return intercept(vcpu);
	case MV_RUN_NOTIFY:
		mv_doorbell_ring(vcpu->partition, RUN_TAG(answer));
		return 1;
	case MV_RUN_HALTED:
		wait_halted(vcpu, READ_ONCE(told->deadline));
		return 1;
	case MV_RUN_WAIT_FOR_SIPI:
		wait_halted(vcpu, 0);
		return 1;
	case MV_RUN_KICK:
		mv_vcpus_wake(vcpu->partition, READ_ONCE(told->kick_set));
		return 1;
	default:
		return -EIO;
	}
}

/*
 * Work that the kernel does for a thread when it returns to user space (NUMA balancing, memory
 * limits, restartable sequences) cannot be done here, and must not wait for the guest's next
 * intercept. But one system call for each preemption would be too many.
 */
static bool is_overdue(struct mv_vcpu *vcpu)
{
	return test_thread_flag(TIF_NOTIFY_RESUME) &&
	       time_after(jiffies, vcpu->entered + LONGEST_STAY);
}

long mv_vcpu_run(struct mv_vcpu *vcpu)
{
	vcpu->entered = jiffies;
	WRITE_ONCE(vcpu->shared->driver[MV_DRIVER_WORD_RUNS], ++vcpu->runs);
	for (;;) {
		u64 answer;
		int result;

		if (mv_partition_ended(vcpu->partition))
			return -ENODEV;
		if (xchg(&vcpu->kick, 0) || signal_pending(current) || is_overdue(vcpu))
			return -EINTR;
		cond_resched();
		result = take_turn(vcpu, &answer);
		if (result)
			return result == -ENOENT ? -ENODEV : result;
		keep_timer(vcpu);
		result = follow(vcpu, answer);
		if (result <= 0)
			return result;
	}
}
