//! How a model is asked to think. Converse has one field for it, `outputConfig.effort`, which few models take yet; the
//! others have fields of their makers' in `additionalModelRequestFields`.
//!
//! Sources: Claude <https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-extended-thinking.html> and
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/claude-messages-adaptive-thinking.html>, Nova 2
//! <https://docs.aws.amazon.com/nova/latest/nova2-userguide/using-converse-api.html>, `gpt-oss`
//! <https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-openai.html>.

use serde::Serialize;

use crate::chat::{ChatRequest, ReasoningEffort};

/// The least tokens of thinking that Claude takes.
const LEAST_BUDGET: u32 = 1024;

/// What asks a model to think. Models that think anyway, or not at all, are asked nothing, and neither are those whose
/// kind an ARN hides.
#[derive(Default)]
pub(super) struct Thinking {
    pub fields: Option<Fields>,
    /// Goes into `outputConfig`.
    pub effort: Option<&'static str>,
}

/// The maker's own fields.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Fields {
    Claude {
        thinking: Claude,
    },
    Nova {
        #[serde(rename = "reasoningConfig")]
        reasoning_config: Nova,
    },
    Gpt {
        reasoning_effort: &'static str,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Claude {
    Adaptive,
    Enabled { budget_tokens: u32 },
}

#[derive(Serialize)]
pub(super) struct Nova {
    r#type: &'static str,
    #[serde(rename = "maxReasoningEffort")]
    effort: &'static str,
}

impl Thinking {
    pub(super) fn of(request: &ChatRequest) -> Self {
        let effort = match request.effort() {
            None | Some(ReasoningEffort::None) => return Self::default(),
            Some(effort) => effort,
        };
        let model = request.model.as_str();
        if let Some(version) = claude(model) {
            // From 4.6 on the model itself finds how much to think; from 4.7 on it takes no number any more.
            let adaptive = match request.reasoning_budget {
                Some(_) => version >= (4, 7),
                None => version >= (4, 6),
            };
            return if adaptive {
                Self {
                    fields: Some(Fields::Claude {
                        thinking: Claude::Adaptive,
                    }),
                    effort: Some(match effort {
                        ReasoningEffort::ExtraHigh => "max",
                        other => three_steps(other),
                    }),
                }
            } else {
                let thinking = Claude::Enabled {
                    budget_tokens: budget(request),
                };
                Self::asking(Fields::Claude { thinking })
            };
        }
        let effort = three_steps(effort);
        if model.contains("amazon.nova-2") {
            let reasoning_config = Nova {
                r#type: "enabled",
                effort,
            };
            Self::asking(Fields::Nova { reasoning_config })
        } else if model.contains("openai.gpt-oss") {
            Self::asking(Fields::Gpt {
                reasoning_effort: effort,
            })
        } else {
            Self::default()
        }
    }

    fn asking(fields: Fields) -> Self {
        Self {
            fields: Some(fields),
            effort: None,
        }
    }
}

/// The thinking must leave room for an answer.
fn budget(request: &ChatRequest) -> u32 {
    let budget = request.budget().unwrap_or(LEAST_BUDGET);
    let most = request
        .max_tokens
        .map_or(u32::MAX, |most| most.saturating_sub(1));
    budget.min(most).max(LEAST_BUDGET)
}

fn three_steps(effort: ReasoningEffort) -> &'static str {
    match effort {
        ReasoningEffort::None | ReasoningEffort::Minimal | ReasoningEffort::Low => "low",
        ReasoningEffort::Medium => "medium",
        ReasoningEffort::High | ReasoningEffort::ExtraHigh => "high",
    }
}

/// The version of a Claude that can think: of `claude-3-7-sonnet-20250219`, `claude-sonnet-4-20250514`,
/// `claude-opus-4-6-v1`. A number of more than two digits is a date.
fn claude(model: &str) -> Option<(u32, u32)> {
    let (_, name) = model.split_once("anthropic.claude-")?;
    let mut numbers = name
        .split('-')
        .skip_while(|part| part.parse::<u32>().is_err())
        .map_while(|part| part.parse().ok().filter(|number| *number < 100));
    let version = (numbers.next()?, numbers.next().unwrap_or(0));
    Some(version).filter(|version| *version >= (3, 7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_every_form_of_name() {
        for (model, version) in [
            ("anthropic.claude-3-7-sonnet-20250219-v1:0", Some((3, 7))),
            ("us.anthropic.claude-sonnet-4-20250514-v1:0", Some((4, 0))),
            ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", Some((4, 5))),
            ("global.anthropic.claude-opus-4-6-v1", Some((4, 6))),
            ("anthropic.claude-opus-4-7", Some((4, 7))),
            ("anthropic.claude-sonnet-5", Some((5, 0))),
            (
                "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-opus-4-1-20250805-v1:0",
                Some((4, 1)),
            ),
            // These do not think.
            ("anthropic.claude-3-5-sonnet-20241022-v2:0", None),
            ("anthropic.claude-3-haiku-20240307-v1:0", None),
            ("anthropic.claude-instant-v1", None),
            ("anthropic.claude-v2:1", None),
            ("amazon.nova-2-lite-v1:0", None),
        ] {
            assert_eq!(claude(model), version, "{model}");
        }
    }

    #[test]
    fn the_budget_leaves_room_for_the_answer() {
        let with = |budget, max_tokens| {
            let mut request = ChatRequest::new("m");
            (request.reasoning_budget, request.max_tokens) = (Some(budget), max_tokens);
            super::budget(&request)
        };
        assert_eq!(with(100, None), 1024);
        assert_eq!(with(5000, None), 5000);
        assert_eq!(with(5000, Some(4000)), 3999);
        // Too little room: the provider says so better than we could.
        assert_eq!(with(5000, Some(10)), 1024);
    }
}
