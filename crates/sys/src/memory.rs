//! The C library's allocator, tuned for a process that must stay small. Nothing here changes behaviour.

/// Makes the allocator return memory early: the heap grows page by page, and blocks of `large` bytes or more get their
/// own mapping, which returns to the kernel when freed. Does nothing with libraries other than glibc.
pub fn keep_small(large: i32) {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, large), (libc::M_TRIM_THRESHOLD, 16 * 1024), (libc::M_TOP_PAD, 0)]
    {
        // SAFETY: mallopt takes two integers and refuses what it does not know.
        unsafe { libc::mallopt(parameter, value) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = large;
}

/// Returns unused heap pages to the kernel. Does nothing with libraries other than glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only releases free memory of the allocator.
    unsafe {
        libc::malloc_trim(0)
    };
}
