//! Keeps what the process is resident with close to what it uses.

use std::time::Duration;

/// Between two looks at what can be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// To be called before anything else. Without transparent huge pages: an idle region is some kilobytes of small pieces in
/// many places, and the allocator asks the kernel for huge pages wherever one would fit, so that ten thousand regions took
/// twice the memory that lives in them.
pub fn keep_small() {
    // Where the kernel does not know of it, the process is larger and nothing else.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Gives back to the kernel what a burst has left free. The allocator does so by itself only while much is allocated, and
/// after a burst a store may have nothing to do for hours.
pub async fn give_back() {
    let mut turns = tokio::time::interval(GIVE_BACK);
    loop {
        turns.tick().await;
        collect();
    }
}

#[allow(unsafe_code, reason = "the allocator has no other way to be asked")]
fn collect() {
    // SAFETY: it takes no memory of ours, and any thread may call it.
    unsafe { libmimalloc_sys::mi_collect(false) }
}
