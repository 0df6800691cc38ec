//! The daemon's core: takes requests from connections, runs handlers, writes answers.
//!
//! ```no_run
//! use lapce_ai_proto::MessageType;
//! use lapce_ai_server::{Options, Server};
//! use lapce_ai_transport::{Listener, RuntimeDir};
//!
//! let mut server = Server::new(Options::default());
//! server.handle(MessageType::ECHO, |request, reply| reply.send_body(request.into_body()));
//! let runtime = tokio::runtime::Runtime::new()?;
//! server.start(Listener::bind(&RuntimeDir::default_for_user())?, runtime.handle())?.join();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A thread, the *reactor*, owns the reading halves of its connections and runs [sync](Server::handle) handlers for them:
//! it polls the rings of those that talk and sleeps on the sockets of those that do not. There is one, or several where the
//! machine has [processors for them](Options::reactors_for). [Async](Server::handle_async)
//! handlers run on a tokio runtime and write their answers straight into the connection's ring, under a lock that is
//! held for the copy and never across an await.
#![forbid(unsafe_code)]

mod handler;
mod line;
mod mailbox;
mod occupancy;
mod options;
mod pace;
mod postbox;
mod reactor;
mod repeats;
mod server;
mod session;
mod succession;

pub use handler::{Body, Gone, OwnedRequest, Reply, Request, Responder};
pub use options::Options;
pub use repeats::{Remembered, RepeatOptions};
pub use server::{Running, Server, ServerHandle, StartError};
pub use succession::{AdoptError, Adopted, Legacy, Resting, RetireError, Retiring, SegmentTerms};
