//! What a daemon and the one that follows it say to each other: JSON, each message whole.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lapce_ai_server::{Legacy, Remembered, SegmentTerms};
use lapce_ai_transport::{AtRest, Channel, ChannelError, ClientWords, ProducerPosition};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The version of these messages, and of what they mean. Of two daemons with different ones neither follows the other.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Message {
    /// From the next daemon: all is prepared that can be before it has the socket.
    #[serde(rename_all = "camelCase")]
    Ready {
        version: u32,
        name: String,
        terms: Terms,
    },
    /// From the daemon, which takes nothing new by now. The listening socket and the lock come with it, and so many
    /// connections behind it.
    Estate { estate: Estate, connections: usize },
    /// Some of them, with two descriptors for each: its socket and its segment.
    Connections(Vec<Resting>),
    /// From the next daemon: it has all, and accepts nobody yet.
    Taken,
    /// From the daemon: it will never accept anybody again.
    Go,
    /// From the next daemon: it cannot follow.
    Failed { reason: String },
}

/// [`SegmentTerms`], as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Terms {
    layout: u32,
    max_message_size: u64,
    max_frame_payload: u32,
    max_streams: u32,
    inline_window: u32,
    request_capacity: u32,
    response_capacity: u32,
}

impl From<SegmentTerms> for Terms {
    fn from(terms: SegmentTerms) -> Self {
        Self {
            layout: terms.layout,
            max_message_size: terms.limits.max_message_size,
            max_frame_payload: terms.limits.max_frame_payload,
            max_streams: terms.limits.max_streams,
            inline_window: terms.limits.inline_window,
            request_capacity: terms.request_capacity,
            response_capacity: terms.response_capacity,
        }
    }
}

/// A connection at rest, as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resting {
    id: u64,
    window: u32,
    last_id: u64,
    requests: u64,
    age_ms: u64,
    name: String,
    instance: Hex,
    earlier: u16,
    crc: bool,
    consumed: u64,
    tail: u64,
    seen_head: u64,
    restart: u64,
    touched: u64,
}

impl From<lapce_ai_server::Resting> for Resting {
    fn from(resting: lapce_ai_server::Resting) -> Self {
        let AtRest {
            consumed,
            produced,
            crc,
        } = resting.at_rest;
        Self {
            id: resting.id,
            window: resting.window,
            last_id: resting.last_id,
            requests: resting.requests,
            age_ms: millis(resting.age),
            name: resting.said.name,
            instance: Hex(resting.said.instance),
            earlier: resting.said.earlier,
            crc,
            consumed,
            tail: produced.tail,
            seen_head: produced.seen_head,
            restart: produced.restart,
            touched: produced.touched,
        }
    }
}

impl From<Resting> for lapce_ai_server::Resting {
    fn from(resting: Resting) -> Self {
        Self {
            id: resting.id,
            window: resting.window,
            last_id: resting.last_id,
            requests: resting.requests,
            age: Duration::from_millis(resting.age_ms),
            said: ClientWords {
                name: resting.name,
                instance: resting.instance.0,
                earlier: resting.earlier,
            },
            at_rest: AtRest {
                consumed: resting.consumed,
                produced: ProducerPosition {
                    tail: resting.tail,
                    seen_head: resting.seen_head,
                    restart: resting.restart,
                    touched: resting.touched,
                },
                crc: resting.crc,
            },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// [`Legacy`], as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::serve) struct Estate {
    instance: Hex,
    connections: u64,
    clients: Vec<Client>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Client {
    uid: u32,
    instance: Hex,
    age_ms: u64,
    present: u64,
    through: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spared: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    since: Vec<u64>,
}

/// 128 bits as hexadecimal digits: JSON's numbers are not made for so many.
#[derive(Debug, Clone, Copy)]
struct Hex(u128);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        u128::from_str_radix(&digits, 16)
            .map(Self)
            .map_err(|_| D::Error::custom("an instance must be 128 bits as hexadecimal digits"))
    }
}

impl From<Legacy> for Estate {
    fn from(legacy: Legacy) -> Self {
        let client = |client: Remembered| Client {
            uid: client.uid,
            instance: Hex(client.instance),
            age_ms: millis(client.age),
            present: client.present,
            through: client.through,
            spared: client.spared,
            since: client.since,
        };
        Self {
            instance: Hex(legacy.instance),
            connections: legacy.connections,
            clients: legacy.clients.into_iter().map(client).collect(),
        }
    }
}

impl From<Estate> for Legacy {
    fn from(estate: Estate) -> Self {
        let client = |client: Client| Remembered {
            uid: client.uid,
            instance: client.instance.0,
            age: Duration::from_millis(client.age_ms),
            present: client.present,
            through: client.through,
            spared: client.spared,
            since: client.since,
        };
        Self {
            instance: estate.instance.0,
            connections: estate.connections,
            clients: estate.clients.into_iter().map(client).collect(),
        }
    }
}

/// Why the two do not understand each other.
#[derive(Debug, thiserror::Error)]
pub(super) enum TalkError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("it said what cannot be read: {0}")]
    Garbled(#[from] serde_json::Error),
    #[error("it says {0} where something else was expected")]
    Unexpected(&'static str),
    #[error(
        "it speaks version {theirs} of the hand-over, and this daemon {VERSION}: stop this daemon and start the other"
    )]
    Version { theirs: u32 },
    #[error("{0}")]
    Failed(String),
}

impl Message {
    pub(super) fn send(
        &self,
        channel: &Channel,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), TalkError> {
        let body = serde_json::to_vec(self)?;
        Ok(channel.send(&body, descriptors, deadline)?)
    }

    /// The next message. A failure that the other one tells of is an error.
    pub(super) fn receive(
        channel: &Channel,
        deadline: Option<Instant>,
    ) -> Result<(Self, Vec<OwnedFd>), TalkError> {
        let (body, descriptors) = channel.receive(deadline)?;
        match serde_json::from_slice(&body)? {
            Self::Failed { reason } => Err(TalkError::Failed(reason)),
            message => Ok((message, descriptors)),
        }
    }

    /// The error of a message that does not belong here.
    pub(super) fn unexpected(&self) -> TalkError {
        TalkError::Unexpected(match self {
            Self::Ready { .. } => "`ready`",
            Self::Estate { .. } => "`estate`",
            Self::Connections(_) => "`connections`",
            Self::Taken => "`taken`",
            Self::Go => "`go`",
            Self::Failed { .. } => "`failed`",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_comes_as_it_went() {
        let legacy = Legacy {
            instance: u128::MAX - 5,
            connections: u64::MAX,
            clients: vec![
                Remembered {
                    uid: 1000,
                    instance: 7,
                    age: Duration::from_millis(1234),
                    present: 3,
                    through: u64::MAX - 1,
                    spared: vec![1, 5],
                    since: vec![u64::MAX],
                },
                Remembered {
                    uid: 0,
                    instance: 0,
                    age: Duration::ZERO,
                    present: 0,
                    through: 0,
                    spared: Vec::new(),
                    since: Vec::new(),
                },
            ],
        };
        let message = Message::Estate {
            estate: legacy.clone().into(),
            connections: 3,
        };
        let text = serde_json::to_string(&message).unwrap();
        let Message::Estate { estate, .. } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}");
        };
        assert_eq!(Legacy::from(estate), legacy);
        let resting = lapce_ai_server::Resting {
            id: u64::MAX,
            window: u32::MAX,
            last_id: 3,
            requests: 4,
            age: Duration::from_millis(5),
            said: ClientWords {
                name: "an \"editor\"\n".to_owned(),
                instance: u128::MAX,
                earlier: 6,
            },
            at_rest: AtRest {
                consumed: 7,
                produced: ProducerPosition {
                    tail: 8,
                    seen_head: 9,
                    restart: 10,
                    touched: u64::MAX,
                },
                crc: true,
            },
        };
        let text = serde_json::to_string(&Resting::from(resting.clone())).unwrap();
        let read: Resting = serde_json::from_str(&text).unwrap();
        assert_eq!(lapce_ai_server::Resting::from(read), resting);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let wrong = [
            "",
            "[]",
            "{\"estate\":{}}",
            "{\"estate\":{\"estate\":{\"instance\":\"xyz\",\"connections\":0,\"clients\":[]},\"connections\":0}}",
            "{\"estate\":{\"estate\":{\"instance\":\"1\",\"connections\":0,\"clients\":[]},\"connections\":-1}}",
            "{\"estate\":{\"estate\":{\"instance\":\"1\",\"connections\":1,\"clients\":[{\"uid\":1}]},\"connections\":0}}",
            "{\"ready\":{\"version\":\"one\"}}",
            "{\"connections\":[{\"id\":1}]}",
            "{\"connections\":7}",
            "{\"other\":{}}",
        ];
        for text in wrong {
            assert!(serde_json::from_str::<Message>(text).is_err(), "{text}");
        }
    }
}
