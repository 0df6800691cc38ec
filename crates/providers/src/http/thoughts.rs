//! Whose a thought is.
//!
//! A provider's proof of a thought (a signature, or the whole thought encrypted) means nothing to another, and most
//! refuse a request that has a foreign one. So a proof leaves here with its provider's name before it, as in
//! `anthropic/EqQB…`, and comes back only to that one, without the name. Whoever else continues the conversation gets
//! the text of the thought without its proof, which each format leaves out or downgrades as its API wants it; what is
//! encrypted is left out.

use std::borrow::Cow;

use crate::chat::{ChatRequest, Content, Message};
use crate::event::{Event, ToolCallDelta};

/// Ends the provider's name: no name has one.
const END: char = '/';

/// `event` with the name before its proof, which is kept in `scratch`.
pub(super) fn named<'a>(event: Event<'a>, name: &str, scratch: &'a mut String) -> Event<'a> {
    let mut tag = |proof: &str| {
        scratch.clear();
        scratch.push_str(name);
        scratch.push(END);
        scratch.push_str(proof);
    };
    match event {
        Event::Reasoning {
            text,
            signature: Some(proof),
        } => {
            tag(proof);
            Event::Reasoning {
                text,
                signature: Some(scratch),
            }
        }
        Event::RedactedReasoning(proof) => {
            tag(proof);
            Event::RedactedReasoning(scratch)
        }
        Event::ToolCall(
            delta @ ToolCallDelta {
                signature: Some(proof),
                ..
            },
        ) => {
            tag(proof);
            Event::ToolCall(ToolCallDelta {
                signature: Some(scratch),
                ..delta
            })
        }
        other => other,
    }
}

/// `request` with the proofs of this provider, without its name, and nobody else's.
pub(super) fn own<'a>(request: &'a ChatRequest, name: &str) -> Cow<'a, ChatRequest> {
    let proofs = |message: &Message| {
        let proof = |content: &Content| {
            matches!(
                content,
                Content::RedactedReasoning(_)
                    | Content::Reasoning {
                        signature: Some(_),
                        ..
                    }
            )
        };
        message.content.iter().any(proof)
            || message
                .tool_calls
                .iter()
                .any(|call| call.signature.is_some())
    };
    if !request.messages.iter().any(proofs) {
        return Cow::Borrowed(request);
    }
    let own = |proof: &str| {
        let proof = proof.strip_prefix(name)?.strip_prefix(END)?;
        Some(proof.to_owned())
    };
    let mut request = request.clone();
    for message in &mut request.messages {
        message.content.retain_mut(|content| match content {
            Content::Reasoning { signature, .. } => {
                *signature = signature.as_deref().and_then(own);
                true
            }
            Content::RedactedReasoning(data) => match own(data) {
                Some(proof) => {
                    *data = proof;
                    true
                }
                None => false,
            },
            _ => true,
        });
        for call in &mut message.tool_calls {
            call.signature = call.signature.as_deref().and_then(own);
        }
    }
    Cow::Owned(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Role, ToolCall};

    #[test]
    fn a_proof_comes_back_to_its_own_provider_only() {
        let mut scratch = String::new();
        let delta = ToolCallDelta {
            index: 1,
            id: Some("i"),
            name: None,
            arguments: "{}",
            signature: Some("c/d"),
        };
        for (event, expected) in [
            (
                Event::Reasoning {
                    text: "t",
                    signature: Some("a/b"),
                },
                Event::Reasoning {
                    text: "t",
                    signature: Some("x/a/b"),
                },
            ),
            (
                Event::RedactedReasoning("{}"),
                Event::RedactedReasoning("x/{}"),
            ),
            (
                Event::ToolCall(delta),
                Event::ToolCall(ToolCallDelta {
                    signature: Some("x/c/d"),
                    ..delta
                }),
            ),
            (Event::Text("x"), Event::Text("x")),
        ] {
            assert_eq!(named(event, "x", &mut scratch), expected);
        }

        let thought = |proof: Option<&str>| Content::Reasoning {
            text: "t".into(),
            signature: proof.map(Into::into),
        };
        let message = |proofs: [Option<&str>; 2], redacted: &[&str]| {
            let [signature, of_call] = proofs;
            let redacted = redacted
                .iter()
                .map(|data| Content::RedactedReasoning((*data).into()));
            Message {
                role: Role::Assistant,
                content: std::iter::once(thought(signature))
                    .chain(redacted)
                    .collect(),
                tool_calls: vec![ToolCall {
                    signature: of_call.map(Into::into),
                    ..ToolCall::default()
                }],
                tool_call_id: None,
            }
        };
        let request = ChatRequest::new("m").with(message([Some("x/a/b"), Some("x/c")], &["x/{}"]));
        let mine = own(&request, "x");
        assert_eq!(mine.messages, [message([Some("a/b"), Some("c")], &["{}"])]);
        // Neither another's, nor one whose name begins alike, nor one that nobody named.
        for name in ["y", "x2", ""] {
            let other = own(&request, name);
            assert_eq!(other.messages, [message([None, None], &[])], "{name}");
        }
        let bare = ChatRequest::new("m").with(message([Some("EqQB"), None], &["Ab/c"]));
        assert_eq!(own(&bare, "x").messages, [message([None, None], &[])]);
        let plain = ChatRequest::new("m").with(message([None, None], &[]));
        assert!(matches!(own(&plain, "x"), Cow::Borrowed(_)));
    }
}
