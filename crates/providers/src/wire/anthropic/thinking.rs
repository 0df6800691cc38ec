//! How hard to think, and how many tokens an answer may have: both must fit together.
//!
//! Source: <https://platform.claude.com/docs/en/build-with-claude/thinking> and
//! <https://platform.claude.com/docs/en/build-with-claude/extended-thinking>.

use serde::Serialize;

use super::model::{Model, Off, Thinks};
use crate::chat::{ChatRequest, ReasoningEffort};

/// The smallest budget that the API takes.
const LEAST_BUDGET: u32 = 1_024;
/// What remains of `max_tokens` for the answer where we choose it.
const ROOM: u32 = 4_096;

/// The most that we choose for `max_tokens` where the answer does not stream: with more, one answer may take longer
/// than ten minutes, and the official SDKs refuse it.
const MOST_UNSTREAMED: u32 = 21_333;

/// The beta behind [`Binding`].
pub(super) const BINDING_BETA: &str = "thinking-binding-controls-2026-08-01";

/// What a request says about thinking.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub max_tokens: u32,
    pub thinking: Option<Thinking>,
    pub effort: Option<&'static str>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Thinking {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_tokens: Option<u32>,
    /// Whether the text of thoughts is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    display: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_binding: Option<Binding>,
}

/// What becomes of thoughts whose conversation has changed since. We cannot know whether it has (an editor shortens
/// its history, or has other tools now), and without them the answer is still an answer, so they are dropped.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Binding {
    prefix_mismatch_behavior: &'static str,
}

impl Thinking {
    fn of_type(r#type: &'static str) -> Self {
        Self {
            r#type,
            budget_tokens: None,
            display: None,
            block_binding: None,
        }
    }

    /// Whether it needs [`BINDING_BETA`].
    pub(super) fn binds(&self) -> bool {
        self.block_binding.is_some()
    }
}

/// Plans for `request`. `thoughts`: it hands thoughts back.
pub(crate) fn plan(model: Model, request: &ChatRequest, forced_tool: bool, thoughts: bool) -> Plan {
    let usual = if request.stream {
        model.usual_max_tokens()
    } else {
        model.usual_max_tokens().min(MOST_UNSTREAMED)
    };
    let mut plan = Plan {
        max_tokens: request.max_tokens.unwrap_or(usual),
        thinking: None,
        effort: None,
    };
    match (model.thinks(), request.effort()) {
        (Thinks::Never, _) => {}
        (_, Some(ReasoningEffort::None)) => match model.off() {
            Off::Unasked => {}
            Off::Type(off) => plan.thinking = Some(Thinking::of_type(off)),
            Off::Never => plan.effort = Some("low"),
        },
        // Thinking and a forced tool exclude each other; the tool is the plainer demand.
        (Thinks::Budget, Some(_)) if !forced_tool => budget(&mut plan, model, request),
        (Thinks::Adaptive, Some(effort)) => {
            plan.effort = Some(effort_name(effort, model));
            if !forced_tool {
                plan.thinking = Some(Thinking {
                    display: model.hides_thoughts().then_some("summarized"),
                    ..Thinking::of_type("adaptive")
                });
            }
        }
        _ => {}
    }
    let adaptive = |thinking: &Option<Thinking>| {
        thinking
            .as_ref()
            .is_none_or(|thinking| thinking.r#type == "adaptive")
    };
    if thoughts && model.binds_thoughts() && !forced_tool && adaptive(&plan.thinking) {
        // The same as no word about thinking for these models, but the rule must stand in it.
        let thinking = plan.thinking.take();
        plan.thinking = Some(Thinking {
            block_binding: Some(Binding {
                prefix_mismatch_behavior: "drop_block",
            }),
            ..thinking.unwrap_or(Thinking::of_type("adaptive"))
        });
    }
    plan
}

/// A budget below `max_tokens`, as the API wants it. Where the caller set both, the budget gives way; a mere effort
/// gets half at most, so that an answer is left. Where too little is left for any budget, there is no thinking.
fn budget(plan: &mut Plan, model: Model, request: &ChatRequest) {
    let Some(wanted) = request.budget() else {
        return;
    };
    let wanted = wanted.max(LEAST_BUDGET);
    let most = match request.max_tokens {
        Some(max_tokens) if request.reasoning_budget.is_some() => max_tokens.saturating_sub(1),
        Some(max_tokens) => max_tokens / 2,
        None => {
            let needed = wanted.saturating_add(ROOM).min(model.most_tokens());
            plan.max_tokens = plan.max_tokens.max(needed);
            plan.max_tokens.saturating_sub(ROOM)
        }
    };
    let budget = wanted.min(most);
    if budget >= LEAST_BUDGET {
        plan.thinking = Some(Thinking {
            budget_tokens: Some(budget),
            ..Thinking::of_type("enabled")
        });
    }
}

fn effort_name(effort: ReasoningEffort, model: Model) -> &'static str {
    match effort {
        ReasoningEffort::None | ReasoningEffort::Minimal | ReasoningEffort::Low => "low",
        ReasoningEffort::Medium => "medium",
        ReasoningEffort::High => "high",
        ReasoningEffort::ExtraHigh if model.has_xhigh() => "xhigh",
        ReasoningEffort::ExtraHigh => "max",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(
        model: &str,
        effort: Option<ReasoningEffort>,
        budget: Option<u32>,
        max_tokens: Option<u32>,
    ) -> Plan {
        let request = ChatRequest {
            reasoning: effort,
            reasoning_budget: budget,
            max_tokens,
            ..ChatRequest::new(model)
        };
        plan(Model::of(model), &request, false, false)
    }

    #[test]
    fn a_budget_is_always_less_than_max_tokens() {
        let effort = Some(ReasoningEffort::ExtraHigh);
        for (model, effort, budget, max_tokens, expected) in [
            ("claude-opus-4-5", effort, None, None, (36_864, 32_768)),
            // Its limit is 32,000.
            ("claude-opus-4-1", effort, None, None, (32_000, 27_904)),
            (
                "claude-opus-4-5",
                effort,
                None,
                Some(10_000),
                (10_000, 5_000),
            ),
            (
                "claude-opus-4-5",
                None,
                Some(9_999),
                Some(10_000),
                (10_000, 9_999),
            ),
            (
                "claude-opus-4-5",
                None,
                Some(20_000),
                Some(10_000),
                (10_000, 9_999),
            ),
            ("claude-opus-4-5", None, Some(7), None, (32_000, 1_024)),
            (
                "claude-opus-4-5",
                None,
                Some(u32::MAX),
                None,
                (64_000, 59_904),
            ),
            (
                "glm-4.6",
                None,
                Some(u32::MAX),
                None,
                (u32::MAX, u32::MAX - ROOM),
            ),
        ] {
            let plan = planned(model, effort, budget, max_tokens);
            let thinking = plan.thinking.unwrap();
            assert_eq!(
                (plan.max_tokens, thinking.budget_tokens.unwrap()),
                expected,
                "{model}"
            );
            assert_eq!(thinking.r#type, "enabled");
        }
        for (budget, max_tokens) in [(Some(2_000), 1_024), (Some(2_000), 0), (None, 2_000)] {
            let effort = Some(ReasoningEffort::High);
            let plan = planned("claude-opus-4-5", effort, budget, Some(max_tokens));
            assert_eq!((plan.max_tokens, plan.thinking), (max_tokens, None));
        }
    }

    #[test]
    fn efforts_and_off() {
        let (none, most) = (
            Some(ReasoningEffort::None),
            Some(ReasoningEffort::ExtraHigh),
        );
        for (model, effort, thinking, word) in [
            ("claude-opus-4-6", most, Some("adaptive"), Some("max")),
            ("claude-opus-4-7", most, Some("adaptive"), Some("xhigh")),
            ("claude-opus-4-8", none, None, None),
            ("claude-opus-4-8", None, None, None),
            ("claude-opus-5", none, Some("disabled"), None),
            ("claude-opus-5", None, None, None),
            ("claude-opus-5-5", none, None, Some("low")),
            ("claude-sonnet-5-5", none, Some("between_tools"), None),
            ("claude-3-5-sonnet-latest", most, None, None),
            ("claude-sonnet-4-5", none, None, None),
        ] {
            let plan = planned(model, effort, None, None);
            let r#type = plan.thinking.map(|thinking| thinking.r#type);
            assert_eq!((r#type, plan.effort), (thinking, word), "{model}");
        }
        // A budget is an effort where there are only those.
        let plan = planned("claude-opus-4-8", None, Some(2_048), None);
        assert_eq!(plan.effort, Some("low"));
    }

    #[test]
    fn a_forced_tool_leaves_no_thinking() {
        for model in ["claude-opus-4-5", "claude-opus-4-8"] {
            let request = ChatRequest {
                reasoning: Some(ReasoningEffort::High),
                ..ChatRequest::new(model)
            };
            assert_eq!(
                plan(Model::of(model), &request, true, true).thinking,
                None,
                "{model}"
            );
        }
    }

    #[test]
    fn bound_thoughts_may_be_dropped() {
        let with = |effort, model: &str| {
            let request = ChatRequest {
                reasoning: effort,
                ..ChatRequest::new(model)
            };
            plan(Model::of(model), &request, false, true).thinking
        };
        let unasked = with(None, "claude-opus-5-5").unwrap();
        assert!(unasked.binds() && unasked.display.is_none());
        let asked = with(Some(ReasoningEffort::High), "claude-opus-5-5").unwrap();
        assert!(asked.binds() && asked.display.is_some());
        assert!(
            !with(Some(ReasoningEffort::None), "claude-sonnet-5-5")
                .unwrap()
                .binds()
        );
        assert_eq!(with(None, "claude-opus-5"), None);
    }
}
