//! Keeps what the process is resident with close to what it uses.

/// To be called before anything else. Without transparent huge pages: an idle region is some kilobytes of small pieces in
/// many places, and the allocator asks the kernel for huge pages wherever one would fit, so that ten thousand regions took
/// twice the memory that lives in them.
pub fn keep_small() {
    // Where the kernel does not know of it, the process is larger and nothing else.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
