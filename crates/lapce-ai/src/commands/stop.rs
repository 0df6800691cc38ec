//! `lapce-ai stop`.

use std::time::{Duration, Instant};

use lapce_ai_client::{ClientError, ConnectError};
use lapce_ai_transport::RuntimeDir;

use super::or_interrupted;
use crate::config::Config;
use crate::failure::Failure;
use crate::launch;
use crate::output::{Output, note};

/// How long a daemon may take to go, besides its drain.
const GRACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn run(config: &Config) -> Result<(), Failure> {
    super::run(or_interrupted(async {
        let client = match launch::connect(config).await {
            Ok(client) => client,
            Err(ClientError::Connect(ConnectError::NotRunning { path })) => {
                note(&format!(
                    "lapce-ai: no daemon listens on {}: there is nothing to stop",
                    path.display()
                ));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let pid = client.status().await?.pid;
        client.shutdown(None).await?;
        client.close().await;
        wait_until_gone(config, pid).await?;
        Ok(Output::stdout().line(&format!("stopped the daemon (process {pid})"))?)
    }))
}

/// The lock file is the last thing that an orderly daemon takes away.
async fn wait_until_gone(config: &Config, pid: u32) -> Result<(), Failure> {
    let lock = RuntimeDir::for_socket(&config.ipc.socket_path).lock();
    let deadline = Instant::now() + config.ipc.drain_timeout + GRACE;
    while lock.exists() {
        if Instant::now() >= deadline {
            return Err(Failure::Failed(format!(
                "the daemon (process {pid}) has been told to stop and still runs: see its log, or end it with `kill -9 {pid}`"
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
