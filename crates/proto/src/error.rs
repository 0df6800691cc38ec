//! The table of error codes, and the body of an ERROR frame.

use serde::{Deserialize, Serialize};

use crate::{Attempt, Fault};

/// At whose door an error lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// The one who sent the request.
    Caller,
    /// The daemon.
    Server,
    /// The AI provider.
    Provider,
    /// What lies between the daemon and the provider.
    Network,
}

impl Whose {
    /// As in the document's table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Server => "server",
            Self::Provider => "provider",
            Self::Network => "network",
        }
    }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $whose:ident, $retry:literal, $advice:literal;)*) => {
        /// Why a request, or with id 0 the connection, failed. The table is `docs/protocol.md` section 8.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = concat!("`", $name, "`: ", $advice, ".")] $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn row(self) -> (u16, &'static str, Whose, bool, &'static str) {
                match self { $(Self::$variant => ($number, $name, Whose::$whose, $retry, $advice),)* }
            }
        }
    };
}

error_codes! {
    Cancelled = 1, "cancelled", Caller, false, "nothing, you asked for it";
    DeadlineExceeded = 2, "deadline_exceeded", Caller, true, "give more time, or a smaller request";
    InvalidRequest = 3, "invalid_request", Caller, false, "correct the request as the message says";
    UnknownType = 4, "unknown_type", Caller, false, "use a message type that this daemon knows";
    MessageTooLarge = 5, "message_too_large", Caller, false, "send less or ask for less, or raise ipc.max_message_size";
    Overloaded = 6, "overloaded", Server, true, "wait a little and try again, or raise ipc.buffer_pool_size or the limits of the provider";
    Stalled = 7, "stalled", Caller, true, "send the whole request, and read its answer, without a pause";
    Internal = 8, "internal", Server, false, "report it, with the daemon's log";
    ServerRestarting = 9, "server_restarting", Server, true, "reconnect and send it again";
    OutcomeUnknown = 10, "outcome_unknown", Server, false, "the daemon went away while it ran: check before you repeat it";
    TooManyConnections = 11, "too_many_connections", Server, true, "close some editors, or raise ipc.max_connections";
    PermissionDenied = 12, "permission_denied", Caller, false, "connect as the daemon's user, or add the uid to ipc.allowed_uids";
    UnsupportedVersion = 13, "unsupported_version", Caller, false, "update the older of client and daemon";
    ProtocolError = 14, "protocol_error", Caller, false, "a bug in the client: the fault names it";
    IdleTimeout = 15, "idle_timeout", Caller, true, "reconnect when there is work";
    AuthenticationFailed = 20, "authentication_failed", Caller, false, "check the provider's key";
    ProviderDenied = 21, "provider_denied", Caller, false, "ask the provider for access to this model";
    ModelNotFound = 22, "model_not_found", Caller, false, "choose a model that lapce-ai models lists";
    ProviderRejected = 23, "provider_rejected", Caller, false, "correct the request as the provider's message says";
    ContextTooLong = 24, "context_too_long", Caller, false, "shorten the conversation, or choose a model with a larger context";
    RateLimited = 25, "rate_limited", Provider, true, "wait for retryAfterMs";
    QuotaExhausted = 26, "quota_exhausted", Caller, false, "top up the account at the provider";
    ProviderOverloaded = 27, "provider_overloaded", Provider, true, "wait, or use another provider";
    ProviderFailed = 28, "provider_failed", Provider, true, "wait, or use another provider";
    ProviderUnreachable = 29, "provider_unreachable", Network, true, "check the network, the proxy and the base URL";
    ProviderTimeout = 30, "provider_timeout", Provider, true, "try again, or raise the provider's time-outs";
    StreamCut = 31, "stream_cut", Provider, true, "ask again; what came so far is incomplete";
    ProviderMalformed = 32, "provider_malformed", Provider, false, "report it: the provider sent what lapce-ai does not understand";
    ContentFiltered = 33, "content_filtered", Provider, false, "change the request";
    NoProvider = 34, "no_provider", Caller, false, "set a key or start a local model: see lapce-ai models";
    Unsupported = 35, "unsupported", Caller, false, "choose a model that can do this";
    BudgetSpent = 36, "budget_spent", Caller, true, "wait for retryAfterMs, lower maxTokens, or raise the budget in the daemon's configuration";
}

impl ErrorCode {
    /// The number in the header of an ERROR frame.
    pub fn number(self) -> u16 {
        self.row().0
    }

    /// The code with this number; an unknown number counts as [`ErrorCode::Internal`].
    pub fn from_number(number: u16) -> Self {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
            .unwrap_or(Self::Internal)
    }

    /// The stable name.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// At whose door it lies.
    pub fn whose(self) -> Whose {
        self.row().2
    }

    /// Whether the same request may succeed later.
    pub fn may_retry(self) -> bool {
        self.row().3
    }

    /// What a person should do.
    pub fn advice(self) -> &'static str {
        self.row().4
    }
}

/// What an ERROR frame says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message} ({}): {}", .provider.as_deref().map(|p| format!("{p}: ")).unwrap_or_default(), code.name(), code.advice())]
pub struct ErrorBody {
    /// The code; its number is in the frame's header.
    pub code: ErrorCode,
    /// For people; never holds a key.
    pub message: String,
    /// How long to wait before a retry, in milliseconds; 49 days at most, for which a longer time stands too.
    pub retry_after_ms: Option<u32>,
    /// Which provider said so.
    pub provider: Option<Box<str>>,
    /// The provider's HTTP status.
    pub status: Option<u16>,
    /// The provider's own code or type for it, such as `insufficient_quota`.
    pub provider_code: Option<Box<str>>,
    /// The provider's id of the request, for its support.
    pub request_id: Option<Box<str>>,
    /// The [`Fault::name`] behind a `protocol_error`.
    pub fault: Option<Box<str>>,
    /// Who was asked, in order; the last ones, where there is no room for all. Empty where nobody but `provider` was.
    pub attempts: Box<[Attempt]>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider_code: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Attempt>,
}

impl ErrorBody {
    /// Longest message on the wire, in bytes; a longer one is cut.
    pub const MAX_MESSAGE: usize = 512;
    /// Longest payload of an ERROR frame, in bytes; a message that JSON makes longer is cut further. Keeps the frame
    /// within every connection's `max_frame_payload`, and within the room that each ring keeps for control frames.
    pub const MAX_LEN: usize = 960;

    /// An error with a message and nothing else.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: None,
            provider: None,
            status: None,
            provider_code: None,
            request_id: None,
            fault: None,
            attempts: Box::default(),
        }
    }

    /// The `protocol_error` that tells a peer what it did.
    pub fn from_fault(fault: Fault) -> Self {
        Self {
            fault: Some(fault.name().into()),
            ..Self::new(ErrorCode::ProtocolError, fault.meaning())
        }
    }

    /// Appends the JSON payload, of at most [`MAX_LEN`](Self::MAX_LEN) bytes, with over-long texts cut.
    pub fn write(&self, buffer: &mut Vec<u8>) {
        let cut = |text: &str, most: usize| text[..text.floor_char_boundary(most)].to_owned();
        let short = |text: &Option<Box<str>>| text.as_deref().map(|text| cut(text, 64).into());
        let mut json = Json {
            code: self.code.name().to_owned(),
            message: cut(&self.message, Self::MAX_MESSAGE),
            retry_after_ms: self.retry_after_ms.map(u64::from),
            provider: short(&self.provider),
            status: self.status,
            provider_code: short(&self.provider_code),
            request_id: short(&self.request_id),
            fault: short(&self.fault),
            attempts: self.attempts.to_vec(),
        };
        let start = buffer.len();
        loop {
            // A struct of strings and numbers always serializes, and a vector always takes the bytes.
            let _ = serde_json::to_writer(&mut *buffer, &json);
            if buffer.len() - start <= Self::MAX_LEN {
                return;
            }
            if !json.attempts.is_empty() {
                // What was tried first matters least.
                json.attempts.remove(0);
            } else if !json.message.is_empty() {
                // Escapes make up to six bytes of one.
                let most = json.message.len() / 2;
                json.message
                    .truncate(json.message.floor_char_boundary(most));
            } else if json.request_id.take().is_none() && json.provider_code.take().is_none() {
                return;
            }
            buffer.truncate(start);
        }
    }

    /// Reads an ERROR frame. The number rules; a body that is not JSON becomes the message as it is, so that an
    /// error is never lost to an error.
    pub fn read(number: u16, payload: &[u8]) -> Self {
        let json: Json = serde_json::from_slice(payload).unwrap_or_else(|_| Json {
            code: String::new(),
            message: String::from_utf8_lossy(payload).into_owned(),
            retry_after_ms: None,
            provider: None,
            status: None,
            provider_code: None,
            request_id: None,
            fault: None,
            attempts: Vec::new(),
        });
        Self {
            code: ErrorCode::from_number(number),
            message: json.message,
            retry_after_ms: json
                .retry_after_ms
                .map(|ms| u32::try_from(ms).unwrap_or(u32::MAX)),
            provider: json.provider,
            status: json.status,
            provider_code: json.provider_code,
            request_id: json.request_id,
            fault: json.fault,
            attempts: json.attempts.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_survives_the_wire() {
        let body = ErrorBody {
            retry_after_ms: Some(1500),
            provider: Some("openai".into()),
            status: Some(429),
            provider_code: Some("rate_limit_exceeded".into()),
            request_id: Some("req_1".into()),
            attempts: Box::new([Attempt {
                provider: "groq".to_owned(),
                outcome: "failed".to_owned(),
                why: Some("overloaded".to_owned()),
                ..Attempt::default()
            }]),
            ..ErrorBody::new(ErrorCode::RateLimited, "slow \"down\"\n")
        };
        let mut bytes = Vec::new();
        body.write(&mut bytes);
        assert_eq!(ErrorBody::read(body.code.number(), &bytes), body);
    }

    #[test]
    fn the_largest_body_fits_every_frame_and_the_room_kept_for_control() {
        let body = ErrorBody {
            provider: Some("\u{1}".repeat(1000).into()),
            fault: Some("\u{1}".repeat(1000).into()),
            provider_code: Some("\u{1}".repeat(1000).into()),
            request_id: Some("\u{1}".repeat(1000).into()),
            retry_after_ms: Some(u32::MAX),
            status: Some(u16::MAX),
            ..ErrorBody::new(ErrorCode::Internal, "\u{1}".repeat(100_000))
        };
        let mut bytes = Vec::new();
        body.write(&mut bytes);
        assert!(bytes.len() <= ErrorBody::MAX_LEN, "{}", bytes.len());
        let read = ErrorBody::read(body.code.number(), &bytes);
        assert_eq!(read.status, body.status, "still JSON");
    }

    #[test]
    fn the_last_attempts_are_kept_where_there_is_no_room_for_all() {
        let attempt = |at: u64| Attempt {
            provider: "openrouter".to_owned(),
            model: "anthropic/claude-sonnet-4".to_owned(),
            took_ms: at,
            ..Attempt::default()
        };
        let body = ErrorBody {
            attempts: (0..64).map(attempt).collect(),
            ..ErrorBody::new(ErrorCode::ProviderFailed, "it failed")
        };
        let mut bytes = Vec::new();
        body.write(&mut bytes);
        assert!(bytes.len() <= ErrorBody::MAX_LEN);
        let read = ErrorBody::read(body.code.number(), &bytes);
        assert_eq!(read.message, body.message);
        let kept: Vec<u64> = read
            .attempts
            .iter()
            .map(|attempt| attempt.took_ms)
            .collect();
        assert!(kept.len() > 4, "{kept:?}");
        assert!(
            kept.iter().copied().eq(64 - kept.len() as u64..64),
            "{kept:?}"
        );
    }

    #[test]
    fn a_body_that_is_not_json_is_kept() {
        let body = ErrorBody::read(9999, b"gone");
        assert_eq!(
            (body.code, body.message.as_str()),
            (ErrorCode::Internal, "gone")
        );
    }
}
