//! What a server allows.

use std::time::Duration;

use lapce_ai_proto::Limits;
use lapce_ai_transport::{PoolOptions, ServerTerms, usable_cpus};
use rustix::process::geteuid;

use crate::{RepeatOptions, StartError};

/// Limits and times of a [`Server`](crate::Server). Everything has a default.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients are told the daemon is.
    pub name: String,
    /// What one connection may do. `max_frame_payload` is lowered where the rings are too small for it.
    pub limits: Limits,
    /// Bytes of each request ring, a power of two from 4 KiB.
    pub request_capacity: u32,
    /// Bytes of each response ring, a power of two from 4 KiB.
    pub response_capacity: u32,
    /// Connections at once; a further one is refused with `too_many_connections`.
    pub max_connections: usize,
    /// User ids that are served beside our own and root.
    pub allowed_uids: Vec<u32>,
    /// Longest time from connecting to a whole HELLO.
    pub handshake_timeout: Duration,
    /// Longest time without progress: of a request that is being sent, and of answers that are not being read.
    pub stall_timeout: Duration,
    /// What counts as progress of a request or an answer that holds memory: so many bytes within `stall_timeout`, or all
    /// that is left. Otherwise a byte now and then could hold the whole budget.
    pub stall_bytes: usize,
    /// A connection without requests is closed after so long. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Deadline of requests that name none. `None`: no deadline.
    pub default_deadline: Option<Duration>,
    /// How long the sync handlers of one batch of requests may take before that is counted and logged. It is
    /// measured to a tick of the kernel's clock, 1 to 10 ms, and less than two of them counts as two.
    pub handler_limit: Duration,
    /// How long a reactor looks for more before it sleeps. Counts as zero where there are not more usable CPUs than reactors:
    /// the clients need one, too.
    pub spin: Duration,
    /// Threads that read from connections and run sync handlers, 1 to [`MOST_REACTORS`](Self::MOST_REACTORS). A connection
    /// belongs to one of them for its life. More than one is worth it only where many processors are usable.
    pub reactors: usize,
    /// Where payload bytes are kept.
    pub pool: PoolOptions,
    /// A CRC on every frame of every connection.
    pub require_crc: bool,
    /// Whether the descriptors of segments are kept, one more for each connection. So connections at rest can be handed to
    /// the [next server](crate::ServerHandle::retire), and their clients notice nothing.
    pub keep_segments: bool,
    /// Whether segments are offered.
    pub shared_memory: bool,
    /// What is remembered of connections that were lost.
    pub repeats: RepeatOptions,
    /// The server stops by itself when nobody has been connected for so long.
    pub exit_when_idle: Option<Duration>,
}

impl Options {
    /// The most reactors that may be asked for.
    pub const MOST_REACTORS: usize = 64;

    /// How many reactors suit a machine with so many usable CPUs: one for each four, at most eight. One serves some
    /// millions of small messages a second, and the other CPUs belong to the clients and to async handlers.
    ///
    /// ```
    /// use lapce_ai_server::Options;
    /// assert_eq!([1, 2, 4, 5, 8, 16, 64].map(Options::reactors_for), [1, 1, 1, 2, 2, 4, 8]);
    /// ```
    pub fn reactors_for(cpus: usize) -> usize {
        cpus.div_ceil(4).clamp(1, 8)
    }

    /// Whether they make sense together.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let limits = &self.limits;
        if limits.max_message_size > self.pool.budget {
            return Err(StartError::Options(format!(
                "max_message_size ({}) is over the buffers' budget ({}): such a message could never be taken",
                limits.max_message_size, self.pool.budget
            )));
        }
        if limits.max_message_size > i32::MAX as u64 {
            return Err(StartError::Options(
                "max_message_size is at most 2147483647".to_owned(),
            ));
        }
        for capacity in [self.request_capacity, self.response_capacity] {
            if !capacity.is_power_of_two() || !(4 << 10..=1 << 30).contains(&capacity) {
                return Err(StartError::Options(format!(
                    "a ring of {capacity} bytes: it must be a power of two from 4 KiB to 1 GiB"
                )));
            }
        }
        if !(1..=Self::MOST_REACTORS).contains(&self.reactors) {
            return Err(StartError::Options(format!(
                "{} reactors: there may be 1 to {}",
                self.reactors,
                Self::MOST_REACTORS
            )));
        }
        Ok(())
    }

    /// Whether a user's clients are served.
    pub(crate) fn serves(&self, uid: u32) -> bool {
        uid == 0 || uid == geteuid().as_raw() || self.allowed_uids.contains(&uid)
    }

    /// What clients are offered.
    pub(crate) fn terms(&self, instance: u128) -> ServerTerms {
        ServerTerms {
            instance,
            name: self.name.clone(),
            limits: self.limits,
            request_capacity: self.request_capacity,
            response_capacity: self.response_capacity,
            shared_memory: self.shared_memory,
            require_crc: self.require_crc,
            keep_segments: self.keep_segments,
        }
    }
}

/// Tells this life of the daemon from others. Not a secret.
pub(crate) fn instance() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // Each RandomState has fresh keys from the system's random numbers.
    let half = || u128::from(RandomState::new().hash_one(0_u8));
    half() << 64 | half()
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: concat!("lapce-ai ", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits {
                max_message_size: 10 << 20,
                max_frame_payload: 16 << 10,
                max_streams: 256,
                inline_window: 128 << 10,
            },
            request_capacity: 128 << 10,
            response_capacity: 128 << 10,
            max_connections: 1000,
            allowed_uids: Vec::new(),
            handshake_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            stall_bytes: 64 << 10,
            idle_timeout: Some(Duration::from_secs(1800)),
            default_deadline: Some(Duration::from_secs(600)),
            handler_limit: Duration::from_millis(10),
            spin: Duration::from_micros(50),
            reactors: Self::reactors_for(usable_cpus()),
            pool: PoolOptions::default(),
            require_crc: false,
            keep_segments: false,
            shared_memory: true,
            repeats: RepeatOptions::default(),
            exit_when_idle: None,
        }
    }
}
