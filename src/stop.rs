//! The wish to stop: the first SIGTERM or SIGINT asks for a graceful stop, the second one ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Exit code of a process that a second signal ended.
const EXIT_AT_ONCE: i32 = 130;

/// Tells whoever holds it that the process shall stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stop {
    wish: watch::Receiver<bool>,
}

impl Stop {
    /// Watches the signals from now on.
    pub fn on_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, wish) = watch::channel(false);
        tokio::spawn(async move {
            let first = either(&mut terminate, &mut interrupt).await;
            info!(signal = first, "stopping; a second signal ends the process at once");
            sender.send_replace(true);
            let second = either(&mut terminate, &mut interrupt).await;
            info!(signal = second, "ending at once");
            std::process::exit(EXIT_AT_ONCE);
        });
        Ok(Self { wish })
    }

    /// A wish that the returned sender gives (`true`); also given when the sender is dropped.
    pub fn by_hand() -> (watch::Sender<bool>, Self) {
        let (sender, wish) = watch::channel(false);
        (sender, Self { wish })
    }

    /// Resolves once the process shall stop.
    pub async fn wanted(&self) {
        let mut wish = self.wish.clone();
        // An error means that the sender is gone, so nobody can wish for anything else any more.
        let _ = wish.wait_for(|wanted| *wanted).await;
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
