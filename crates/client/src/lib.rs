//! The client of a lapce-ai daemon, for editors, plugins, agents and scripts.
//!
//! ```no_run
//! use lapce_ai_client::ai::{AIRequest, Message, StreamEvent};
//! use lapce_ai_client::{Client, Options};
//!
//! # async fn example() -> Result<(), lapce_ai_client::ClientError> {
//! let client = Client::connect(Options::for_default_socket()).await?;
//! let mut answer = client.chat(&AIRequest::new("", vec![Message::user("hello")])).await?;
//! while let Some(event) = answer.next().await {
//!     if let StreamEvent::Text { text } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] is for programs on tokio, [`BlockingClient`] for all others, from any number of threads:
//!
//! ```no_run
//! use lapce_ai_client::{BlockingClient, MessageType, Options};
//! let client = BlockingClient::connect(Options::for_default_socket())?;
//! assert_eq!(client.call(MessageType::ECHO, b"hello")?, b"hello");
//! # Ok::<(), lapce_ai_client::ClientError>(())
//! ```
//!
//! Both make a lost connection again, by the [`ReconnectPolicy`]. If the daemon has lived on, it says what became of what was
//! under way, and what still runs goes on. If it is another, requests are sent again that the last one had
//! not accepted, or that are [repeatable](RequestOptions::repeatable). Everything else ends with
//! [`ClientError::OutcomeUnknown`], and nothing is ever run twice behind your back.
//!
//! | stop on the path | here |
//! |---|---|
//! | request -> frames -> answer, one connection | `link/`, runtime-free, under both clients |
//! | which connection, and when another | `session.rs`, `reconnect.rs` (no clock, no I/O), `watch.rs`, and what of it can be seen: `health.rs` |
//! | what becomes of a request whose connection is lost | `plan.rs` (no I/O) |
//! | waiting | `client/` on tokio, `blocking/` by leader and followers |
//! | types <-> bodies | `typed.rs` of either client, over `bodies.rs` |
#![forbid(unsafe_code)]

mod blocking;
mod bodies;
mod body;
mod client;
mod error;
mod health;
mod link;
mod options;
mod plan;
mod reconnect;
mod session;
mod watch;

pub use blocking::{BlockingClient, ChatItems, Items, Pending};
pub use body::Body;
pub use client::{ChatStream, Client, ItemStream};
pub use error::ClientError;
pub use health::{Event, EventKind, Health, ReconnectCounters, State};
pub use lapce_ai_proto::{
    Class, ErrorBody, ErrorCode, Features, Limits, MessageType, Welcome, ai, status,
};
pub use lapce_ai_transport::ConnectError;
pub use options::{Options, RequestOptions};
pub use reconnect::ReconnectPolicy;
