//! What sets Anthropic's models apart, read from their names.
//!
//! Source: <https://platform.claude.com/docs/en/build-with-claude/thinking>, the models' pages below
//! <https://platform.claude.com/docs/en/models>, and <https://platform.claude.com/docs/en/build-with-claude/effort>.
//! The models endpoint tells most of this, too, but a request must not wait for it.

/// The version of a model: 4 and 6 for `claude-opus-4-6`.
type Version = (u8, u8);

/// A model, as far as requests to it differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    family: Family,
    /// `None`: somebody else's model behind the same API.
    version: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Those that always think.
    FableOrMythos,
    Opus,
    Sonnet,
    Other,
}

/// How a model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinks {
    /// Not at all.
    Never,
    /// Up to a number of tokens.
    Budget,
    /// As it sees fit, steered by an effort.
    Adaptive,
}

/// How a model is told not to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    /// By not asking for it.
    Unasked,
    /// By this type of thinking.
    Type(&'static str),
    /// It cannot be told.
    Never,
}

impl Model {
    /// The model called `name`, in the spelling of any cloud: `claude-sonnet-4-5-20250929`,
    /// `claude-3-7-sonnet-latest`, `us.anthropic.claude-opus-4-6-v1:0`, `anthropic/claude-sonnet-4.5`.
    pub(crate) fn of(name: &str) -> Self {
        let lower = name.to_ascii_lowercase();
        let Some((_, rest)) = lower.split_once("claude") else {
            return Self {
                family: Family::Other,
                version: None,
            };
        };
        let words = || rest.split(|c: char| !c.is_ascii_alphanumeric());
        let mut family = Family::Other;
        for word in words() {
            family = match word {
                "fable" | "mythos" => Family::FableOrMythos,
                "opus" => Family::Opus,
                "sonnet" => Family::Sonnet,
                _ => continue,
            };
        }
        // Eight digits are a date.
        let mut numbers = words().filter(|word| word.len() <= 2).map(str::parse::<u8>);
        let mut next = || numbers.find_map(Result::ok);
        // A name without a number (`claude-mythos-preview`) is that of a new model.
        let version = match next() {
            Some(major) => (major, next().unwrap_or(0)),
            None => (5, 0),
        };
        Self {
            family,
            version: Some(version),
        }
    }

    fn since(self, version: Version) -> bool {
        self.version.is_some_and(|own| own >= version)
    }

    fn before(self, version: Version) -> bool {
        self.version.is_some_and(|own| own < version)
    }

    /// `max_tokens` where the caller names none, which the API does not allow: half of what the model can do since
    /// 4.6, the most that every model can do since 3.7, the model's limit before. Other people's models get 8192.
    pub(super) fn usual_max_tokens(self) -> u32 {
        match self.version {
            Some((4, 6..) | (5.., _)) => 64_000,
            Some((4, _) | (3, 7..)) => 32_000,
            Some((3, 5..)) | None => 8_192,
            Some(_) => 4_096,
        }
    }

    /// The most tokens that an answer may have, thoughts included.
    pub(super) fn most_tokens(self) -> u32 {
        match self.version {
            Some((4, 6..) | (5.., _)) => 128_000,
            Some((4, 0 | 1)) if self.family == Family::Opus => 32_000,
            Some((4, _) | (3, 7..)) => 64_000,
            Some(_) => self.usual_max_tokens(),
            None => u32::MAX,
        }
    }

    /// How it thinks. Other people's models take a budget, as far as they take anything.
    pub(super) fn thinks(self) -> Thinks {
        if self.since((4, 6)) {
            Thinks::Adaptive
        } else if self.before((3, 7)) {
            Thinks::Never
        } else {
            Thinks::Budget
        }
    }

    /// How it is told not to think.
    pub(super) fn off(self) -> Off {
        match self.family {
            Family::FableOrMythos => Off::Never,
            // Think only when asked.
            _ if !self.since((5, 0)) => Off::Unasked,
            Family::Opus if self.since((5, 1)) => Off::Never,
            Family::Sonnet if self.since((5, 1)) => Off::Type("between_tools"),
            _ => Off::Type("disabled"),
        }
    }

    /// Whether it keeps the text of its thoughts to itself unless asked for it.
    pub(super) fn hides_thoughts(self) -> bool {
        self.since((4, 7))
    }

    /// Whether it has an effort between high and max.
    pub(super) fn has_xhigh(self) -> bool {
        self.since((4, 7))
    }

    /// Whether it takes `temperature` and `top_p`. Those since 4.7 answer 400.
    pub(crate) fn takes_sampling(self) -> bool {
        !self.since((4, 7))
    }

    /// Whether it takes instructions of the role `system` among the messages.
    pub(super) fn takes_system_turns(self) -> bool {
        self.since((4, 8)) && !(self.family == Family::Sonnet && self.before((5, 1)))
    }

    /// Whether it refuses thoughts of a conversation that has changed since, unless told to forget them
    /// (<https://platform.claude.com/docs/en/build-with-claude/preserved-thinking>).
    pub(super) fn binds_thoughts(self) -> bool {
        self.since((5, 1))
    }

    /// Whether it holds a tool's arguments to their schema.
    pub(crate) fn takes_strict_tools(self) -> bool {
        self.since((4, 5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_cloud_and_age() {
        for (name, family, version) in [
            ("claude-opus-5-5", Family::Opus, (5, 5)),
            ("claude-sonnet-5", Family::Sonnet, (5, 0)),
            ("claude-fable-5-1", Family::FableOrMythos, (5, 1)),
            ("claude-mythos-preview", Family::FableOrMythos, (5, 0)),
            ("claude-haiku-4-5-20251001", Family::Other, (4, 5)),
            ("claude-opus-4-20250514", Family::Opus, (4, 0)),
            ("claude-sonnet-4@20250514", Family::Sonnet, (4, 0)),
            ("claude-3-7-sonnet-latest", Family::Sonnet, (3, 7)),
            ("claude-3-opus-20240229", Family::Opus, (3, 0)),
            ("us.anthropic.claude-opus-4-6-v1:0", Family::Opus, (4, 6)),
            ("anthropic/Claude-Sonnet-4.5", Family::Sonnet, (4, 5)),
            ("claude-instant-1.2", Family::Other, (1, 2)),
        ] {
            let model = Model::of(name);
            assert_eq!(
                (model.family, model.version),
                (family, Some(version)),
                "{name}"
            );
        }
        assert_eq!(Model::of("glm-4.6").version, None);
    }

    #[test]
    fn what_they_take() {
        use Thinks::{Adaptive, Budget, Never};
        let (disabled, between) = (Off::Type("disabled"), Off::Type("between_tools"));
        for (name, thinks, off, sampling, system, most) in [
            (
                "claude-fable-5-1",
                Adaptive,
                Off::Never,
                false,
                true,
                128_000,
            ),
            (
                "claude-mythos-preview",
                Adaptive,
                Off::Never,
                false,
                true,
                128_000,
            ),
            (
                "claude-opus-5-5",
                Adaptive,
                Off::Never,
                false,
                true,
                128_000,
            ),
            ("claude-opus-5", Adaptive, disabled, false, true, 128_000),
            ("claude-sonnet-5-5", Adaptive, between, false, true, 128_000),
            ("claude-sonnet-5", Adaptive, disabled, false, false, 128_000),
            ("claude-haiku-5-5", Adaptive, disabled, false, true, 128_000),
            (
                "claude-opus-4-8",
                Adaptive,
                Off::Unasked,
                false,
                true,
                128_000,
            ),
            (
                "claude-opus-4-7",
                Adaptive,
                Off::Unasked,
                false,
                false,
                128_000,
            ),
            (
                "claude-sonnet-4-6",
                Adaptive,
                Off::Unasked,
                true,
                false,
                128_000,
            ),
            ("claude-opus-4-5", Budget, Off::Unasked, true, false, 64_000),
            ("claude-opus-4-1", Budget, Off::Unasked, true, false, 32_000),
            (
                "claude-3-7-sonnet-latest",
                Budget,
                Off::Unasked,
                true,
                false,
                64_000,
            ),
            (
                "claude-3-5-haiku-latest",
                Never,
                Off::Unasked,
                true,
                false,
                8_192,
            ),
            (
                "claude-3-haiku-20240307",
                Never,
                Off::Unasked,
                true,
                false,
                4_096,
            ),
            ("kimi-k2", Budget, Off::Unasked, true, false, u32::MAX),
        ] {
            let model = Model::of(name);
            assert_eq!(
                (model.thinks(), model.off(), model.takes_sampling()),
                (thinks, off, sampling),
                "{name}"
            );
            assert_eq!(model.takes_system_turns(), system, "{name}");
            assert_eq!(model.most_tokens(), most, "{name}");
            assert!(model.usual_max_tokens() <= most, "{name}");
        }
    }
}
