//! Checks `tests/rules.txt`, the list of rules and what covers them: it has forty rules, and every
//! test, fuzz target and script that it names exists.

use std::{fs, path::Path};

/// Whether a test exists at a path: `http::response::tests::name` is a unit test,
/// `hostile::pace::name` an integration test.
fn is_test(root: &Path, path: &str) -> bool {
    let parts: Vec<&str> = path.split("::").collect();
    let Some((name, modules)) = parts.split_last() else { return false };
    let unit = modules.last() == Some(&"tests");
    let (base, modules) = if unit {
        (root.join("src"), &modules[..modules.len() - 1])
    } else {
        (root.join("tests/it"), modules)
    };
    let file = base.join(modules.join("/"));
    let own = [file.with_extension("rs"), file.join("mod.rs"), file.join("tests.rs")];
    let test = format!("#[test]\nfn {name}()");
    own.iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .any(|text| text.lines().map(str::trim_start).collect::<Vec<_>>().join("\n").contains(&test))
}

/// Whether a fuzz target exists and is built.
fn is_fuzz_target(root: &Path, name: &str) -> bool {
    let manifest = fs::read_to_string(root.join("tests/fuzz/Cargo.toml")).unwrap();
    let path = format!("targets/{name}.rs");
    manifest.contains(&format!("name = \"{name}\"\npath = \"{path}\"\n"))
        && root.join("tests/fuzz").join(path).exists()
}

/// Returns what is wrong with a table of rules.
fn complaints(root: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut next = 1;
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [number, rule, names, note] = columns[..] else {
            complaints.push(format!("not four columns: {line}"));
            continue;
        };
        if number.parse() != Ok(next) || rule.is_empty() {
            complaints.push(format!("rule {next} is missing before: {line}"));
        }
        next += 1;
        if names.is_empty() && note.is_empty() {
            complaints.push(format!("rule {number}: nothing shows it, and no reason stands there"));
        }
        for name in names.split_whitespace() {
            let there = match name.split_once(':') {
                Some(("fuzz", target)) => is_fuzz_target(root, target),
                Some(("script", path)) => root.join(path).exists(),
                _ => is_test(root, name),
            };
            if !there {
                complaints.push(format!("rule {number}: there is no {name}"));
            }
        }
    }
    if next != 41 {
        complaints.push(format!("{} rules, not 40", next - 1));
    }
    complaints
}

#[test]
fn every_rule_names_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("tests/rules.txt")).unwrap();
    super::check("tests/rules.txt", &complaints(root, &text));
}

#[test]
fn a_renamed_test_is_missed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = "tidy::rules::a_renamed_test_is_missed";
    let missed = |names: &str| {
        let text = (1..=40).map(|number| format!("{number} | A rule. | {names} |\n")).collect::<String>();
        complaints(root, &text).len() / 40
    };
    assert_eq!(missed(&format!("{own} sse::tests::events_round_trip fuzz:head script:scripts/rules.sh")), 0);
    // A test of another name, in another module, a helper function, a unit test named as one of `tests/it`.
    assert_eq!(
        missed(
            "tidy::rules::renamed tidy::a_renamed_test_is_missed tidy::rules::is_test sse::events_round_trip"
        ),
        4
    );
    assert_eq!(missed("fuzz:renamed script:scripts/renamed.sh"), 2);
    assert_eq!(missed(""), 1);
}
