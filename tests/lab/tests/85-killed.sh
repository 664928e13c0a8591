# kill -9 at every step of every verb, with a kernel and a KVM of our own: tests/cli/killed.rs; and damaged
# snapshots: tests/cli/damaged.rs. tests/tier builds their programs when COCOON_ENGINE_LONG asks for it.
# With micro they are part of the root tier, where any KVM will do.

# killed PATTERN... runs the tests whose names have one of the patterns.
killed() {
    only_if_long
    [ -n "${COCOON_ENGINE_KILLED_TESTS:-}" ] || skip "no test program: COCOON_ENGINE_KILLED_TESTS is not set"
    # What is saved is large; the system's own temporary folder is memory here.
    mkdir -p /lab/killed
    TMPDIR=/lab/killed RUST_BACKTRACE=0 COCOON_TEST_ENGINE=$COCOON_ENGINE COCOON_TEST_PROGRAM=$COCOON_ENGINE_KILLED_PROGRAM \
        "$COCOON_ENGINE_KILLED_TESTS" --test-threads 1 --show-output "$@" | tee /lab/killed.out
    assert_lacks "$(cat /lab/killed.out)" " 0 passed" "the tests' sum"
    assert_lacks "$(cat /lab/killed.out)" SKIPPED "what the tests say"
}

lab_a_damaged_or_foreign_snapshot_is_refused_and_the_vm_has_not_noticed() { # 600 s
    killed damaged::
}

lab_a_save_may_be_killed_at_every_step() { # 900 s
    killed killed::root_a_save
}

lab_a_clone_may_be_killed_at_every_step() { # 900 s
    killed killed::root_a_clone
}

lab_a_restore_may_be_killed_at_every_step() { # 2400 s
    killed killed::restore
}

lab_verbs_of_a_vm_with_a_nic_may_be_killed_at_every_step() { # 2700 s
    killed killed::with_nic
}

lab_a_vm_process_may_be_killed_at_every_step() { # 1200 s
    killed killed::vm_process
}

lab_other_verbs_may_be_killed_at_every_step() { # 3600 s
    killed killed::root_an_import killed::root_a_removal killed::root_the_life killed::root_what
}

lab_pulls_and_imports_of_images_may_be_killed_at_every_step() { # 2700 s
    killed killed::image killed::disk_image
}
