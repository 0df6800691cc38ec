//! What makes two requests the same: a hash of everything that the answer depends on.

use std::fmt;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::chat::{ChatRequest, Content, Image, ImageSource, Message, ResponseFormat, ToolChoice};
use crate::pool::Plan;

/// SHA-256 of a request, of who may answer it, and of whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl CacheKey {
    /// The key of `request` as it would be answered by `plan`; `client` is left out where all clients share.
    ///
    /// Not part of it, since no answer depends on it: labels, the end user's name, and marks for the provider's own cache.
    pub(super) fn of(client: Option<u32>, plan: &Plan, request: &ChatRequest) -> Self {
        let ChatRequest {
            // The plan says which.
            model: _,
            system,
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            response_format,
            temperature,
            top_p,
            max_tokens,
            stop,
            seed,
            reasoning,
            reasoning_budget,
            cache_system: _,
            cache_tools: _,
            user: _,
            metadata: _,
            stream,
        } = request;
        let mut to = Canonical::default();
        to.option(client, |to, uid| to.number(uid.into()));
        to.list(&plan.targets, |to, target| {
            to.text(target.member.name());
            to.text(&target.model);
        });
        // What several wrote in turn is no answer for a route on which one writes all of it.
        to.flag(plan.continues);
        to.option(system.as_deref(), Canonical::text);
        to.list(messages, message);
        to.list(tools, |to, tool| {
            to.text(&tool.name);
            to.option(tool.description.as_deref(), Canonical::text);
            let schema = tool.parameters.as_deref().map(RawValue::get);
            to.option(schema, Canonical::text);
            to.option(tool.strict, Canonical::flag);
        });
        to.option(tool_choice.as_ref(), |to, choice| match choice {
            ToolChoice::Auto => to.number(0),
            ToolChoice::None => to.number(1),
            ToolChoice::Required => to.number(2),
            ToolChoice::Tool(name) => {
                to.number(3);
                to.text(name);
            }
        });
        to.option(*parallel_tool_calls, Canonical::flag);
        to.option(response_format.as_ref(), |to, format| match format {
            ResponseFormat::JsonObject => to.number(0),
            ResponseFormat::JsonSchema {
                name,
                schema,
                strict,
            } => {
                to.number(1);
                to.text(name);
                to.text(schema.get());
                to.option(*strict, Canonical::flag);
            }
        });
        for number in [temperature, top_p] {
            to.option(*number, |to, number| to.number(number.to_bits()));
        }
        for number in [max_tokens, reasoning_budget] {
            to.option(*number, |to, number| to.number(number.into()));
        }
        to.list(stop, |to, text| to.text(text));
        to.option(*seed, |to, seed| to.number(seed.cast_unsigned()));
        to.option(*reasoning, |to, effort| to.number(effort as u64));
        to.flag(*stream);
        Self(to.0.finalize().into())
    }

    #[cfg(test)]
    pub(super) fn numbered(number: u8) -> Self {
        Self([number; 32])
    }
}

fn message(to: &mut Canonical, message: &Message) {
    to.number(message.role as u64);
    to.list(&message.content, |to, content| match content {
        Content::Text(text) => {
            to.number(0);
            to.text(text);
        }
        Content::Image(Image { source, detail }) => {
            match source {
                ImageSource::Url(url) => {
                    to.number(1);
                    to.text(url);
                }
                ImageSource::Base64 { media_type, data } => {
                    to.number(2);
                    to.text(media_type);
                    to.text(data);
                }
            }
            to.option(*detail, |to, detail| to.number(detail as u64));
        }
        Content::Reasoning { text, signature } => {
            to.number(3);
            to.text(text);
            to.option(signature.as_deref(), Canonical::text);
        }
        Content::RedactedReasoning(data) => {
            to.number(4);
            to.text(data);
        }
        Content::CachePoint => to.number(5),
    });
    to.list(&message.tool_calls, |to, call| {
        to.text(&call.id);
        to.text(&call.name);
        to.text(&call.arguments);
        to.option(call.signature.as_deref(), Canonical::text);
    });
    to.option(message.tool_call_id.as_deref(), Canonical::text);
}

/// Values with their lengths before them, so that no two requests are the same bytes.
#[derive(Default)]
struct Canonical(Sha256);

impl Canonical {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn flag(&mut self, flag: bool) {
        self.number(flag.into());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::chat::{ReasoningEffort, Role, Tool, ToolCall};

    fn key(request: &ChatRequest) -> CacheKey {
        CacheKey::of(Some(1), &Plan::default(), request)
    }

    #[test]
    fn everything_that_an_answer_depends_on_makes_another_key() {
        let base = || ChatRequest::new("m").with(Message::user("ab"));
        let changes: &[&dyn Fn(&mut ChatRequest)] = &[
            &|_| {},
            &|r| r.system = Some(String::new()),
            &|r| r.system = Some("ab".into()),
            &|r| r.messages[0] = Message::assistant("ab"),
            &|r| r.messages[0] = Message::user("a"),
            &|r| r.messages.push(Message::user("ab")),
            &|r| r.messages[0].content.push(Content::Text("b".into())),
            &|r| {
                r.messages[0].content = vec![Content::Text("a".into()), Content::Text("b".into())];
            },
            &|r| r.messages[0].role = Role::System,
            &|r| r.messages[0].tool_call_id = Some("x".into()),
            &|r| r.messages[0].tool_calls = vec![ToolCall::default()],
            &|r| {
                let image = |source| {
                    Content::Image(Image {
                        source,
                        detail: None,
                    })
                };
                r.messages[0].content = vec![image(ImageSource::Url("ab".into()))];
            },
            &|r| {
                r.tools = vec![Tool {
                    name: "t".into(),
                    description: None,
                    parameters: None,
                    strict: None,
                }];
            },
            &|r| r.tool_choice = Some(ToolChoice::Auto),
            &|r| r.tool_choice = Some(ToolChoice::Tool("t".into())),
            &|r| r.parallel_tool_calls = Some(false),
            &|r| r.response_format = Some(ResponseFormat::JsonObject),
            &|r| r.temperature = Some(0.0),
            &|r| r.top_p = Some(0.0),
            &|r| r.max_tokens = Some(1),
            &|r| r.reasoning_budget = Some(1),
            &|r| r.stop = vec!["ab".into()],
            &|r| r.stop = vec!["a".into(), "b".into()],
            &|r| r.seed = Some(1),
            &|r| r.reasoning = Some(ReasoningEffort::Low),
            &|r| r.stream = false,
        ];
        let mut keys = HashSet::new();
        for (at, change) in changes.iter().enumerate() {
            let mut request = base();
            change(&mut request);
            assert!(keys.insert(key(&request)), "change {at} changes nothing");
        }
        let mut labelled = base();
        labelled.metadata.insert("a".into(), "b".into());
        labelled.user = Some("me".into());
        labelled.model = "whatever".into();
        assert_eq!(key(&labelled), key(&base()));
        let other = CacheKey::of(Some(2), &Plan::default(), &base());
        let shared = CacheKey::of(None, &Plan::default(), &base());
        assert!(
            keys.insert(other) && keys.insert(shared),
            "another client's"
        );
        let continuing = Plan {
            continues: true,
            ..Plan::default()
        };
        let continued = CacheKey::of(Some(1), &continuing, &base());
        assert!(keys.insert(continued), "another route's");
    }
}
