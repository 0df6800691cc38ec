//! The signals that tell the daemon to stop.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lapce_ai_server::ServerHandle;
use rustix::process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::service::Service;
use super::succession::Lineage;
use crate::failure::Failure;

/// What tells the daemon to stop.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// A terminal that is closed; `None` where that is to be outlived, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    /// To be called within a runtime.
    pub(super) fn new() -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::Failed(format!("cannot wait for signals: {error}"));
        let listen = |kind| signal(kind).map_err(failed);
        let outlives_hangup = ignores(SignalKind::hangup()).map_err(failed)?;
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: match outlives_hangup {
                true => None,
                false => Some(listen(SignalKind::hangup())?),
            },
        })
    }

    /// The first signal gives running requests time to end; Ctrl-C behind it gives none. Any other changes nothing then: a service
    /// manager may send it to all processes, of which one passes it on. Daemons that have followed this one end, too, if it
    /// stands for them.
    pub(super) async fn stop(
        mut self,
        server: ServerHandle,
        service: Option<Arc<Service>>,
        lineage: Arc<Lineage>,
        drain: Duration,
    ) {
        self.first().await;
        lineage.pass_on(process::Signal::TERM);
        tracing::info!(drain_secs = drain.as_secs_f64(), "stopping");
        let leaving = server.clone();
        let left = tokio::task::spawn_blocking(move || {
            service.is_some_and(|service| service.leave(&leaving, drain))
        });
        if !left.await.unwrap_or(false) {
            server.shutdown(drain);
        }
        while self.interrupt.recv().await.is_some() {
            tracing::info!("stopping at once");
            lineage.pass_on(process::Signal::INT);
            server.shutdown(Duration::ZERO);
        }
    }

    async fn first(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Ctrl-C first: sent to all processes it comes with a SIGTERM that was passed on, and must not count as a second.
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether whoever started this process has told it to ignore a signal.
fn ignores(kind: SignalKind) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(is_in(&status, kind.as_raw_value()))
}

/// Whether a process's `status` has a signal among those that it ignores.
fn is_in(status: &str, signal: i32) -> bool {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The first signal has the lowest bit.
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stands_in_the_status() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert_eq!(
            [1, 2, 13, 64].map(|signal| is_in(status, signal)),
            [true, false, true, false]
        );
        assert!(!is_in("", 1) && !is_in("SigIgn:\twhat\n", 1));
    }
}
