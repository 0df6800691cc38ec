//! The daemon that comes: prepares itself, takes what the other one gives, and begins when that one has gone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use lapce_ai_server::{Legacy, Resting, SegmentTerms};
use lapce_ai_transport::{Channel, ChannelError};

use super::message::{self, Message, TalkError, VERSION};
use crate::failure::Failure;

/// How long the other daemon may take to take in what is said to it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon that this one follows.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// `None`: it has gone, or is waited for no more.
    channel: Option<Channel>,
}

/// What it has given.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) legacy: Legacy,
    pub(crate) socket: OwnedFd,
    pub(crate) lock: OwnedFd,
    /// Each with its socket and its segment.
    pub(crate) resting: Vec<(Resting, [OwnedFd; 2])>,
}

impl Predecessor {
    /// The one whose child this process is: standard input leads to it.
    pub(crate) fn of_this_process() -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!(
                "--take-over is for the daemon that `lapce-ai restart` starts: {error}"
            ))
        };
        let socket = std::io::stdin().as_fd().try_clone_to_owned();
        let socket = socket.map_err(|error| failed(&error))?;
        let channel = Channel::inherited(socket).map_err(|error| failed(&error))?;
        // Nobody reads from it, and it must not be held open.
        let null = File::open("/dev/null").map_err(|error| failed(&error))?;
        rustix::stdio::dup2_stdin(null).map_err(|errno| failed(&errno))?;
        Ok(Self {
            channel: Some(channel),
        })
    }

    fn channel(&self) -> Result<&Channel, TalkError> {
        Ok(self.channel.as_ref().ok_or(ChannelError::Closed)?)
    }

    /// Says that all is prepared, and takes what the other daemon gives.
    pub(crate) fn ready(&mut self, terms: SegmentTerms) -> Result<Given, Failure> {
        self.ask_for_estate(terms).map_err(|error| gone(&error))
    }

    fn ask_for_estate(&self, terms: SegmentTerms) -> Result<Given, TalkError> {
        let channel = self.channel()?;
        let ready = Message::Ready {
            version: VERSION,
            name: concat!("lapce-ai ", env!("CARGO_PKG_VERSION")).to_owned(),
            terms: terms.into(),
        };
        ready.send(channel, &[], Instant::now() + PATIENCE)?;
        // It says when it has had enough of this, by ending this process.
        let (message, descriptors) = Message::receive(channel, None)?;
        let Message::Estate {
            estate,
            connections,
        } = message
        else {
            return Err(message.unexpected());
        };
        let found = descriptors.len();
        let Ok([socket, lock]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return Err(ChannelError::WrongDescriptors {
                announced: 2,
                found,
            }
            .into());
        };
        let mut resting = Vec::new();
        while resting.len() < connections {
            resting.extend(some_connections(channel)?);
        }
        Ok(Given {
            legacy: estate.into(),
            socket,
            lock,
            resting,
        })
    }

    /// Says that all has been taken, and waits until the other daemon is out of the way.
    pub(crate) fn taken(&mut self) -> Result<(), Failure> {
        let go = self.wait_for_go();
        self.channel = None;
        match go {
            Ok(()) => Ok(()),
            // It ended before it could say so: nobody accepts, and all that it knew is here. Had it decided otherwise, it
            // would have ended this process before it closed its end.
            Err(TalkError::Channel(ChannelError::Closed)) => {
                tracing::warn!("the daemon before this one ended while it handed over");
                Ok(())
            }
            Err(error) => Err(gone(&error)),
        }
    }

    fn wait_for_go(&self) -> Result<(), TalkError> {
        let channel = self.channel()?;
        Message::Taken.send(channel, &[], Instant::now() + PATIENCE)?;
        match Message::receive(channel, None)? {
            (Message::Go, _) => Ok(()),
            (message, _) => Err(message.unexpected()),
        }
    }

    /// Says that this daemon cannot follow, if the other one waits for that still.
    pub(crate) fn fail(self, failure: &Failure) {
        if let Some(channel) = &self.channel {
            let reason = failure.to_string();
            // Whoever does not hear it sees this process end.
            let _ = Message::Failed { reason }.send(channel, &[], Instant::now() + PATIENCE);
        }
    }
}

fn some_connections(channel: &Channel) -> Result<Vec<(Resting, [OwnedFd; 2])>, TalkError> {
    let (message, descriptors) = Message::receive(channel, None)?;
    let Message::Connections(connections) = message else {
        return Err(message.unexpected());
    };
    let (announced, found) = (2 * connections.len(), descriptors.len());
    if announced != found || announced == 0 {
        return Err(ChannelError::WrongDescriptors { announced, found }.into());
    }
    let mut descriptors = descriptors.into_iter();
    let two = |resting: message::Resting| {
        let parts = [descriptors.next()?, descriptors.next()?];
        Some((resting.into(), parts))
    };
    Ok(connections.into_iter().filter_map(two).collect())
}

fn gone(error: &TalkError) -> Failure {
    Failure::Failed(format!(
        "cannot take over from the daemon before this one: {error}"
    ))
}
