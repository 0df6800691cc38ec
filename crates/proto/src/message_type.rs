//! Type numbers of requests.

use std::fmt;

use crate::Class;

/// What a request asks for: the `type` field of its OPEN frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageType(pub u16);

impl MessageType {
    /// The same bytes back.
    pub const ECHO: Self = Self(0x0001);
    /// What runs, who is connected, which providers are usable.
    pub const STATUS: Self = Self(0x0002);
    /// Drain and stop the daemon.
    pub const SHUTDOWN: Self = Self(0x0003);
    /// Start the next daemon, which takes over.
    pub const RESTART: Self = Self(0x0004);
    /// A conversation.
    pub const CHAT: Self = Self(0x0010);
    /// Code at the cursor.
    pub const AUTOCOMPLETE: Self = Self(0x0011);
    /// A question about a file's text.
    pub const FILE_ANALYSIS: Self = Self(0x0012);
    /// Vectors for texts.
    pub const EMBEDDINGS: Self = Self(0x0013);
    /// The models that can be asked.
    pub const MODELS: Self = Self(0x0014);
    /// The size of a request in tokens.
    pub const TOKEN_COUNT: Self = Self(0x0015);
    /// The first number that is free for programs with their own server.
    pub const FIRST_FREE: Self = Self(0x8000);

    /// The assigned numbers with their names, in the order of the document's table.
    pub const NAMED: [(Self, &'static str); 10] = [
        (Self::ECHO, "echo"),
        (Self::STATUS, "status"),
        (Self::SHUTDOWN, "shutdown"),
        (Self::RESTART, "restart"),
        (Self::CHAT, "chat"),
        (Self::AUTOCOMPLETE, "autocomplete"),
        (Self::FILE_ANALYSIS, "file_analysis"),
        (Self::EMBEDDINGS, "embeddings"),
        (Self::MODELS, "models"),
        (Self::TOKEN_COUNT, "token_count"),
    ];
}

impl MessageType {
    /// How urgent a request of this type is where it does not say so itself.
    pub fn class(self) -> Class {
        match self {
            // Somebody types on meanwhile.
            Self::AUTOCOMPLETE => Class::Interactive,
            // Nobody waits for a single one of them.
            Self::EMBEDDINGS => Class::Bulk,
            _ => Class::Normal,
        }
    }
}

impl MessageType {
    /// Whether running such a request twice never does harm, so that every one counts as repeatable.
    pub fn is_harmless(self) -> bool {
        matches!(
            self,
            Self::ECHO | Self::STATUS | Self::MODELS | Self::TOKEN_COUNT
        )
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMED.iter().find(|(ty, _)| ty == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "0x{:04x}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
