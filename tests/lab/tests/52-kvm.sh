# A machine without KVM, or with one that cannot run ordinary guests.
# images: tiny
# engines: none

lab_missing_kvm_is_refused() {
    need_image tiny
    mv /dev/kvm /dev/kvm-away
    at_exit mv /dev/kvm-away /dev/kvm
    refused "/dev/kvm" cocoon vm run --name nokvm --storage 1G "$REGISTRY/tiny:latest"
    assert_has "$refused_with" "hint" "the refusal"
}

lab_kvm_that_cannot_run_kernels_is_refused_unless_told_otherwise() {
    need_image tiny
    sed -E 's/ (svm|vmx)( |$)/\2/g' /proc/cpuinfo >/lab/cpuinfo
    mount --bind /lab/cpuinfo /proc/cpuinfo
    at_exit umount /proc/cpuinfo
    refused "neither svm nor vmx" cocoon vm run --name weak --storage 1G "$REGISTRY/tiny:latest"
    assert_has "$refused_with" "COCOON_IGNORE_KVM_CHECK=1" "the hint"
    assert_eq "$(cocoon vm list -o json)" "[]" "VMs"
    COCOON_IGNORE_KVM_CHECK=1 cocoon vm run --name stubborn --memory 256M --storage 1G --cpu 1 "$REGISTRY/tiny:latest"
    assert_eq "$(vm_field stubborn .state)" running "state"
}
