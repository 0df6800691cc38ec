//! A conversation as the API wants it: instructions apart, turns of user and assistant in alternation, each a list of
//! content blocks.
//!
//! Source: <https://platform.claude.com/docs/en/api/messages/create>, `messages` and `system`, and
//! <https://platform.claude.com/docs/en/build-with-claude/prompt-caching>.

use serde::Serialize;
use serde_json::value::RawValue;

use super::model::Model;
use crate::chat::{ChatRequest, Content, Image, ImageSource, Message, Role, ToolCall};
use crate::error::{ErrorKind, ProviderError};

/// The most marks of what to cache that one request may have.
pub(super) const MOST_CACHE_MARKS: usize = 4;

/// The instructions and turns of a request.
#[derive(Debug, Default)]
pub(super) struct Conversation<'a> {
    pub system: Vec<Block<'a>>,
    pub turns: Vec<Turn<'a>>,
    /// Whether thoughts are handed back.
    pub thoughts: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Turn<'a> {
    role: &'static str,
    content: Vec<Block<'a>>,
}

/// A content block.
#[derive(Debug, Serialize)]
pub(super) struct Block<'a> {
    #[serde(flatten)]
    kind: Kind<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Kind<'a> {
    Text {
        text: &'a str,
    },
    Image {
        source: Source<'a>,
    },
    Thinking {
        thinking: &'a str,
        signature: &'a str,
    },
    RedactedThinking {
        data: &'a str,
    },
    ToolUse {
        id: &'a str,
        name: &'a str,
        input: Input<'a>,
    },
    ToolResult {
        tool_use_id: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Block<'a>>,
    },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
    Url { url: &'a str },
}

/// A tool's arguments, which must be an object.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Input<'a> {
    Object(&'a RawValue),
    None {},
    /// What the model wrote is no object; this is how its maker wants to see it again
    /// (<https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming>).
    Invalid {
        #[serde(rename = "INVALID_JSON")]
        text: &'a str,
    },
}

/// The mark "everything up to here is worth caching".
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CacheControl {
    r#type: &'static str,
}

impl CacheControl {
    pub(super) const EPHEMERAL: Self = Self {
        r#type: "ephemeral",
    };
}

impl<'a> Block<'a> {
    fn new(kind: Kind<'a>) -> Self {
        Self {
            kind,
            cache_control: None,
        }
    }

    /// Blank texts are refused.
    fn text(text: &'a str) -> Option<Self> {
        (!text.trim().is_empty()).then(|| Self::new(Kind::Text { text }))
    }

    fn is_thought(&self) -> bool {
        matches!(
            self.kind,
            Kind::Thinking { .. } | Kind::RedactedThinking { .. }
        )
    }

    fn mark(&mut self) {
        self.cache_control = Some(CacheControl::EPHEMERAL);
    }
}

impl<'a> Conversation<'a> {
    /// Reads `request`.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](ErrorKind::Unsupported) for images where the API takes none, and
    /// [`InvalidRequest`](ErrorKind::InvalidRequest) for results of no call.
    pub(super) fn of(request: &'a ChatRequest, model: Model) -> Result<Self, ProviderError> {
        let mut conversation = Self::default();
        let system = request.system.as_deref();
        conversation.system.extend(system.and_then(Block::text));
        // Instructions wait for the end of a user's turn: only there may they stand among the turns.
        let mut waiting = Vec::new();
        for message in &request.messages {
            match message.role {
                Role::System => {
                    let early = conversation.turns.is_empty() || !model.takes_system_turns();
                    let place = if early {
                        &mut conversation.system
                    } else {
                        &mut waiting
                    };
                    instructions(message, place)?;
                }
                Role::User => conversation.content(message, "user")?,
                Role::Tool => conversation.tool_result(message)?,
                Role::Assistant => {
                    conversation.instruct(&mut waiting);
                    conversation.content(message, "assistant")?;
                    for tool_call in &message.tool_calls {
                        conversation.turn("assistant").push(call(tool_call));
                    }
                }
            }
        }
        conversation.instruct(&mut waiting);
        conversation.system.append(&mut waiting);
        Ok(conversation)
    }

    /// The turn of `role` that goes on, or a new one: neighbours of one role are one turn.
    fn turn(&mut self, role: &'static str) -> &mut Vec<Block<'a>> {
        if self.turns.last().is_none_or(|turn| turn.role != role) {
            self.turns.push(Turn {
                role,
                content: Vec::new(),
            });
        }
        let last = self.turns.len() - 1;
        &mut self.turns[last].content
    }

    /// Puts the `waiting` instructions behind the user's turn that has ended.
    fn instruct(&mut self, waiting: &mut Vec<Block<'a>>) {
        if !waiting.is_empty() && self.turns.last().is_some_and(|turn| turn.role == "user") {
            self.turn("system").append(waiting);
        }
    }

    fn content(&mut self, message: &'a Message, role: &'static str) -> Result<(), ProviderError> {
        for content in &message.content {
            let kind = match content {
                Content::Text(text) => {
                    if let Some(text) = Block::text(text) {
                        self.turn(role).push(text);
                    }
                    continue;
                }
                Content::Image(_) if role == "assistant" => return Err(images_are_the_users()),
                Content::Image(image) => Kind::Image {
                    source: source(image)?,
                },
                // A thought without a signature is another provider's, as is one in JSON (OpenRouter).
                Content::Reasoning {
                    text: thinking,
                    signature: Some(signature),
                } if role == "assistant" => Kind::Thinking {
                    thinking,
                    signature,
                },
                Content::RedactedReasoning(data)
                    if role == "assistant" && !data.starts_with('{') =>
                {
                    Kind::RedactedThinking { data }
                }
                Content::Reasoning { .. } | Content::RedactedReasoning(_) => continue,
                Content::CachePoint => {
                    self.mark_last();
                    continue;
                }
            };
            let block = Block::new(kind);
            self.thoughts |= block.is_thought();
            self.turn(role).push(block);
        }
        Ok(())
    }

    /// Results come before everything else in their turn, or the API does not find them.
    fn tool_result(&mut self, message: &'a Message) -> Result<(), ProviderError> {
        let Some(tool_use_id) = message.tool_call_id.as_deref() else {
            return Err(ProviderError::new(
                ErrorKind::InvalidRequest,
                "a tool's result does not say which call it belongs to (tool_call_id)",
            ));
        };
        let mut content = Vec::new();
        for part in &message.content {
            match part {
                Content::Text(text) => content.extend(Block::text(text)),
                Content::Image(image) => content.push(Block::new(Kind::Image {
                    source: source(image)?,
                })),
                Content::Reasoning { .. } | Content::RedactedReasoning(_) | Content::CachePoint => {
                }
            }
        }
        let mut block = Block::new(Kind::ToolResult {
            tool_use_id,
            content,
        });
        if message.content.contains(&Content::CachePoint) {
            block.mark();
        }
        let turn = self.turn("user");
        let is_result = |block: &Block<'_>| matches!(block.kind, Kind::ToolResult { .. });
        let at = turn.iter().rposition(is_result).map_or(0, |last| last + 1);
        turn.insert(at, block);
        Ok(())
    }

    /// Marks the last block so far that can be marked. Thoughts cannot.
    fn mark_last(&mut self) {
        let blocks = self.turns.iter_mut().rev();
        let mut blocks = blocks.flat_map(|turn| turn.content.iter_mut().rev());
        if let Some(block) = blocks.find(|block| !block.is_thought()) {
            block.mark();
        }
    }

    /// Marks the instructions, and takes the oldest marks away until `most` are left.
    pub(super) fn mark(&mut self, system: bool, mut most: usize) {
        if let Some(last) = self.system.last_mut().filter(|_| system) {
            last.mark();
        }
        let turns = self.turns.iter_mut().rev();
        let turns = turns.flat_map(|turn| turn.content.iter_mut().rev());
        // The mark of the instructions serves every conversation, so it is never the one too many.
        for block in self.system.iter_mut().rev().chain(turns) {
            if block.cache_control.is_some() {
                if most == 0 {
                    block.cache_control = None;
                }
                most = most.saturating_sub(1);
            }
        }
    }
}

/// Adds the texts of instructions to `place`.
fn instructions<'a>(message: &'a Message, place: &mut Vec<Block<'a>>) -> Result<(), ProviderError> {
    for content in &message.content {
        match content {
            Content::Text(text) => place.extend(Block::text(text)),
            Content::Image(_) => return Err(images_are_the_users()),
            Content::CachePoint => {
                if let Some(last) = place.last_mut() {
                    last.mark();
                }
            }
            Content::Reasoning { .. } | Content::RedactedReasoning(_) => {}
        }
    }
    Ok(())
}

fn call(call: &ToolCall) -> Block<'_> {
    let text = call.arguments.trim();
    let object = serde_json::from_str::<&RawValue>(text).ok();
    let input = match object.filter(|_| text.starts_with('{')) {
        Some(object) => Input::Object(object),
        None if text.is_empty() => Input::None {},
        None => Input::Invalid { text },
    };
    Block::new(Kind::ToolUse {
        id: &call.id,
        name: &call.name,
        input,
    })
}

fn source(image: &Image) -> Result<Source<'_>, ProviderError> {
    let (media_type, data) = match &image.source {
        ImageSource::Base64 { media_type, data } => (media_type.as_str(), data.as_str()),
        // How OpenAI's format puts an image into the request itself.
        ImageSource::Url(url) => match url.strip_prefix("data:") {
            Some(inline) => inline.split_once(";base64,").ok_or_else(|| {
                ProviderError::new(
                    ErrorKind::InvalidRequest,
                    "an image's data: URL is not in base64",
                )
            })?,
            None => return Ok(Source::Url { url }),
        },
    };
    let media_type = match media_type {
        "image/jpeg" | "image/jpg" => "image/jpeg",
        "image/png" | "image/gif" | "image/webp" => media_type,
        other => {
            return Err(ProviderError::new(
                ErrorKind::Unsupported,
                format!("Anthropic takes images of JPEG, PNG, GIF and WebP, not `{other}`"),
            ));
        }
    };
    Ok(Source::Base64 { media_type, data })
}

fn images_are_the_users() -> ProviderError {
    ProviderError::new(
        ErrorKind::Unsupported,
        "Anthropic takes images in messages of the user and in results of tools only",
    )
}
