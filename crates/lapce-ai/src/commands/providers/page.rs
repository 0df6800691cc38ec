//! The page `docs/providers.md`, made from the table.

use std::fmt::Write;

use lapce_ai_providers::{Feature, PROFILES, Profile};

use super::auth;

/// Where the fixtures are, seen from the page.
const FIXTURES: &str = "../crates/providers/tests/fixtures";

const HEAD: &str = "\
# Providers

<!-- Made by `lapce-ai providers --markdown`; a test fails when this page and the code differ. -->

What the daemon knows by name. `lapce-ai providers` prints the same for your own keys. How to add one:
[adding-a-provider.md](adding-a-provider.md).

";

const CELLS: &str = "
## What each can do

Each `yes` leads to the fixture that proves it: what is sent to the provider, what it answers by its own reference, and what becomes of that.
`cargo test -p lapce-ai-providers --test conformance` runs them all, and fails where the table says yes without a fixture, or no with one.
An empty cell is answered by an error that says `unsupported`, or means that the provider has no such thing.

";

pub(super) fn page() -> String {
    let mut page = String::from(HEAD);
    // A string always takes what is written to it.
    let _ = overview(&mut page);
    page.push_str(CELLS);
    let _ = cells(&mut page);
    page.push_str("\n## What the columns mean\n\n");
    for feature in Feature::ALL {
        let _ = writeln!(page, "- `{}`: {}", feature.name(), feature.about());
    }
    page
}

fn overview(page: &mut String) -> std::fmt::Result {
    page.push_str(
        "| name | provider | format | address | key | peculiar |\n|---|---|---|---|---|---|\n",
    );
    for profile in PROFILES {
        let Profile {
            name,
            title,
            reference,
            ..
        } = profile;
        let address = match profile.base_url {
            "" => "`base_url`".to_owned(),
            url => format!("`{url}`"),
        };
        let address = match profile.url_variable {
            Some(variable) => format!("{address}, or `{variable}`"),
            None => address,
        };
        let variables = profile.key_variables.iter();
        let mut key: Vec<String> = variables.map(|name| format!("`{name}`")).collect();
        key.push(auth(profile.auth));
        writeln!(
            page,
            "| `{name}` | [{title}]({reference}) | {} | {address} | {} | {} |",
            profile.format.title(),
            key.join(", "),
            profile.quirks
        )?;
    }
    Ok(())
}

fn cells(page: &mut String) -> std::fmt::Result {
    page.push_str("| name |");
    for feature in Feature::ALL {
        write!(page, " {} |", feature.name())?;
    }
    page.push_str("\n|---|");
    page.push_str(&"---|".repeat(Feature::ALL.len()));
    page.push('\n');
    for profile in PROFILES {
        let name = profile.name;
        write!(page, "| `{name}` |")?;
        for feature in Feature::ALL {
            if profile.features.has(*feature) {
                write!(page, " [yes]({FIXTURES}/{name}/{}.txt) |", feature.name())?;
            } else {
                page.push_str(" |");
            }
        }
        page.push('\n');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_in_the_repository_is_this_one() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        let committed = std::fs::read_to_string(docs.join("providers.md")).unwrap_or_default();
        assert!(
            committed == page(),
            "run: cargo run -p lapce-ai -- providers --markdown > docs/providers.md"
        );
        let links: Vec<&str> = committed
            .split("[yes](")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once(')')?.0))
            .collect();
        let yes = |profile: &Profile| {
            let features = Feature::ALL.iter();
            features
                .filter(|feature| profile.features.has(**feature))
                .count()
        };
        assert_eq!(links.len(), PROFILES.iter().map(yes).sum::<usize>());
        for link in links {
            assert!(
                docs.join(link).is_file(),
                "{link} proves nothing: it is not there"
            );
        }
    }
}
