"""Functions that lie between a mistake and its report, or that many mistakes go through.

They are the same for unrelated mistakes, so they say nothing about which one it is.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache

_PATTERNS = {
    "printing and stopping": """
        dump_stack* __dump_stack show_stack* show_trace* print_* vprintk* printk* _printk __warn*
        warn_slowpath_* report_bug* __report_bug handle_bug die die_* __die* oops_* panic vpanic
        nmi_panic check_panic_on_warn fixup_exception fixup_bug* trigger_*backtrace* rcu_dump_*
        print_cpu_stall* check_cpu_stall rcu_pending* rcu_sched_clock_irq rcu_check_callbacks
        sched_show_task dump_cpu_task arch_trigger_* unwind_backtrace rcu_print_*
        update_process_times tick_* __hrtimer_* hrtimer_interrupt arch_timer_handler*
        end_report start_report""",
    "exceptions and interrupts": """
        exc_* asm_exc_* asm_sysvec_* sysvec_* *_fault_oops do_user_addr_fault do_kern_addr_fault
        do_page_fault __do_page_fault page_fault* no_context bad_area* __bad_area* do_trap*
        do_error_trap do_invalid_op invalid_op do_general_protection general_protection
        do_divide_error divide_error do_int3 int3 do_double_fault double_fault async_page_fault
        apic_timer_interrupt smp_apic_timer_interrupt asm_common_interrupt common_interrupt
        retint_kernel arch_local_irq_*
        ret_from_intr __report_bad_irq note_interrupt nmi_* error_entry do_mem_abort
        do_translation_fault el1_* el1h_* el0_*
        do_DataAbort do_PrefetchAbort __dabt_svc __und_svc __pabt_svc do_DataAbort do_undefinstr
        segv segv_handler bad_segv sig_handler* hard_handler timer_real_alarm_handler
        relay_signal um_get_signals* um_set_signals* get_signals* set_signals* block_signals*
        unblock_signals* uml_curr_cpu arch_irqs_disabled* trace_hardirqs_*""",
    "checkers": """
        kasan_* __kasan_* __asan_* kmsan_* __msan_* kfence_* __kfence_* kcsan_* __tsan_* ubsan_*
        __ubsan_* kmemleak_* check_memory_region* memory_is_poisoned* check_region_inline
        debug_print_object debug_object_* __debug_object* debug_check_no_obj_freed
        __debug_check_no_obj_freed debug_timer_* debug_work_* debug_check_no_locks*
        debug_smp_processor_id check_preemption_disabled __this_cpu_preempt_check debug_dma_*
        err_printk add_dma_entry check_unmap check_sync save_stack* __save_stack* stack_trace_*
        stack_depot_* __stack_depot_* set_track* ref_tracker_* __ref_tracker_* __virt_addr_valid
        __phys_addr* __read_once_size __write_once_size read_word_at_a_time instrument_*
        usercopy_abort __check_object_size* check_heap_object check_stack_object
        check_object_size check_copy_size* __check_heap_object fortify_panic __fortify_*
        should_fail* should_failslab fail_dump""",
    "lock checking": """
        lockdep_* lock_acquire* lock_release* __lock_* lock_set_class check_noncircular
        check_prev_add check_prevs_add check_deadlock* check_usage* check_irq_usage mark_lock*
        mark_held_locks mark_usage add_lock_to_list lookup_chain_cache_add register_lock_class
        assign_lock_key validate_chain valid_state might_* __might_* ___might_* check_wait_context
        rcu_lockdep_* lock_is_held* __ww_* rcu_note_context_switch""",
    "locks and waiting": """
        _raw_spin_* _raw_read_* _raw_write_* __raw_* do_raw_* spin_* _spin_* queued_*
        native_queued_* pv_* spin_bug spin_dump rwlock_bug* debug_spin_* read_lock* write_lock*
        mutex_* __mutex_* rwsem_* down_read* down_write* __down_* up_read* up_write* __up_*
        percpu_down_* percpu_up_* __percpu_* percpu_rwsem_* wait_for_common* wait_for_completion*
        __wait_for_common do_wait_for_common schedule schedule_* __schedule* io_schedule* msleep*
        usleep_range* preempt_schedule* ___preempt_schedule* _cond_resched __cond_resched*
        context_switch __switch_to* __trace_set_current_state""",
    "ways into the kernel, and its threads' beginnings": """
        do_syscall_64 entry_SYSCALL* entry_SYSENTER* x64_sys_call do_int80* __do_fast_syscall_32
        do_fast_syscall_32 handle_syscall userspace fork_handler new_thread_handler
        ret_from_fork* kthread worker_thread process_one_work process_scheduled_works""",
    "counting and lists": """
        refcount_* __refcount_* kref_* atomic_* atomic64_* arch_atomic* raw_atomic* *test_bit
        set_bit clear_bit *test_and_*_bit *constant_test_bit __list_* list_add* list_del*
        list_move* list_splice* kobject_* sysfs_* __hlist_* hlist_*
        init_timer_key timer_init_key""",
    "allocators and copying": """
        kmalloc* __kmalloc* ___kmalloc* kzalloc* kcalloc* krealloc* kmemdup* kstrdup* kvmalloc*
        __kvmalloc* vmalloc* __vmalloc* vzalloc* kvfree* vfree* kfree kfree_sensitive __kfree
        kmem_cache_* __kmem_cache_* *slab_alloc* *slab_free* *slab_post_alloc* new_slab
        allocate_slab discard_slab do_slab_free ___slab_alloc free_debug_processing
        alloc_debug_processing free_consistency_checks free_to_partial_list
        check_object check_slab check_bytes* on_freelist cache_alloc* cache_free* cache_from_obj
        object_err slab_err slab_bug slab_fix __slab_err __slab_bug warn_alloc alloc_pages*
        __alloc_pages* alloc_frozen_pages* __alloc_frozen_pages* get_page_from_freelist
        post_alloc_hook prep_new_page __free_pages* alloc_slab_page
        memcpy* __memcpy* memset* __memset* memmove* __memmove* __pi_mem* memcmp strcmp
        strlen strnlen strcpy strncpy strscpy copy_to_user* copy_from_user* _copy_to_user
        _copy_from_user
        _copy_to_iter _copy_from_iter raw_copy_* copy_user_*""",
}


@cache
def _machinery() -> re.Pattern[str]:
    # Compiled with the first report that there is: that takes as long as to import much else.
    return re.compile(
        "|".join(translate(glob) for globs in _PATTERNS.values() for glob in globs.split())
    )


def is_machinery(function: str) -> bool:
    """Whether a function, named as in the source, is one of those."""
    return bool(_machinery().match(function))
