//! The tables of `docs/protocol.md`, as rows of cells. The transport's tests read theirs with it too.

use std::collections::BTreeSet;

const DOCUMENT: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/protocol.md"
));

/// The rows of the table with this mark, without its head, which must have these columns.
pub fn table(name: &str, columns: &[&str]) -> Vec<Vec<String>> {
    let mark = format!("<!-- table: {name} -->\n");
    let (_, rest) = DOCUMENT
        .split_once(&mark)
        .unwrap_or_else(|| panic!("the document has no table {name}"));
    let (text, _) = rest
        .split_once("<!-- end -->")
        .unwrap_or_else(|| panic!("the table {name} has no end"));
    assert!(
        !text.contains("<!-- table:"),
        "the table {name} has no end of its own"
    );
    let mut rows = text.trim().lines().map(cells);
    assert_eq!(rows.next().unwrap(), columns, "the head of {name}");
    let rule = rows.next().unwrap();
    assert!(
        rule.len() == columns.len() && rule.iter().all(|cell| cell.chars().all(|c| c == '-')),
        "the rule below the head of {name}"
    );
    let rows: Vec<_> = rows.collect();
    for row in &rows {
        assert_eq!(row.len(), columns.len(), "a row of {name}: {row:?}");
    }
    rows
}

/// The names of all marked tables.
pub fn names() -> BTreeSet<&'static str> {
    DOCUMENT
        .split("<!-- table: ")
        .skip(1)
        .map(|rest| rest.split_once(" -->").unwrap().0)
        .filter(|name| *name != "…")
        .collect()
}

/// The whole page.
pub fn text() -> &'static str {
    DOCUMENT
}

/// A row's cells; `\|` is a bar inside a cell.
pub fn cells(row: &str) -> Vec<String> {
    const BAR: &str = "\u{0}";
    row.trim()
        .trim_start_matches('|')
        .trim_end_matches('|')
        .replace("\\|", BAR)
        .split('|')
        .map(|cell| cell.trim().replace(BAR, "|"))
        .collect()
}

/// The number in a cell, decimal or hexadecimal, with or without back quotes.
pub fn number(cell: &str) -> u64 {
    let cell = cell.trim_matches('`');
    match cell.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => cell.parse(),
    }
    .unwrap_or_else(|_| panic!("{cell} is no number"))
}

/// The texts between back quotes.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
