//! The filter of a `subscriptions/listen` request (MCP 2026-07-28): the sets of lists, resources
//! and tasks whose changes it reports.

use std::collections::BTreeSet;

use crate::mcp::listing::ListKind;

/// Kinds of lists whose changes are reported. Resources and resource templates are one kind here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Kinds(u8);

impl Kinds {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// All kinds.
    pub const ALL: Self = Self(7);

    /// The kinds, each once.
    const EACH: [ListKind; 3] = [ListKind::Tool, ListKind::Prompt, ListKind::Resource];

    /// Returns the set of one kind.
    pub fn of(kind: ListKind) -> Self {
        match kind {
            ListKind::Tool => Self(1),
            ListKind::Prompt => Self(2),
            ListKind::Resource | ListKind::Template => Self(4),
        }
    }

    /// Whether a kind is in the set.
    pub fn contains(self, kind: ListKind) -> bool {
        self.0 & Self::of(kind).0 != 0
    }

    /// Returns the kinds of both sets.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the kinds that are in both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the kinds in the set.
    pub fn iter(self) -> impl Iterator<Item = ListKind> {
        Self::EACH.into_iter().filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<ListKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = ListKind>>(kinds: I) -> Self {
        kinds.into_iter().map(Self::of).fold(Self::NONE, Self::union)
    }
}

/// What a listen covers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    /// Lists whose changes are reported.
    pub kinds: Kinds,
    /// URIs of resources whose updates are reported.
    pub uris: BTreeSet<String>,
    /// Ids of tasks whose changes are reported (the extension `io.modelcontextprotocol/tasks`).
    pub tasks: BTreeSet<String>,
}

impl Filter {
    /// Returns the filter for the changes of lists alone.
    pub fn of_kinds(kinds: Kinds) -> Self {
        Self { kinds, ..Self::default() }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.has_lists_only()
    }

    /// Whether it covers neither resources nor tasks.
    pub fn has_lists_only(&self) -> bool {
        self.uris.is_empty() && self.tasks.is_empty()
    }

    /// Whether it covers all that the other covers.
    pub fn covers(&self, other: &Self) -> bool {
        self.kinds.union(other.kinds) == self.kinds
            && other.uris.is_subset(&self.uris)
            && other.tasks.is_subset(&self.tasks)
    }

    /// Returns the number of resources and tasks that it covers and the other does not.
    pub fn excess(&self, other: &Self) -> usize {
        self.uris.difference(&other.uris).count() + self.tasks.difference(&other.tasks).count()
    }

    /// Returns the bytes of its URIs and ids.
    pub fn bytes(&self) -> usize {
        self.uris.iter().chain(&self.tasks).map(String::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(kinds: Kinds, uris: &[&str], tasks: &[&str]) -> Filter {
        let set = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Filter { kinds, uris: set(uris), tasks: set(tasks) }
    }

    #[test]
    fn kinds_are_a_set() {
        let both: Kinds = [ListKind::Tool, ListKind::Template, ListKind::Tool].into_iter().collect();
        assert_eq!(both.iter().collect::<Vec<_>>(), [ListKind::Tool, ListKind::Resource]);
        for (kind, is_in) in ListKind::ALL.into_iter().zip([true, false, true, true]) {
            assert_eq!(both.contains(kind), is_in, "{kind:?}");
        }
        let prompts = Kinds::of(ListKind::Prompt);
        assert_eq!(both.union(prompts).iter().count(), 3);
        assert!(both.intersection(prompts).is_empty() && Kinds::NONE.is_empty() && !both.is_empty());
    }

    #[test]
    fn filters_are_compared_as_sets() {
        let tools = Kinds::of(ListKind::Tool);
        let large = filter(tools, &["a", "b"], &["1"]);
        for (small, is_covered, excess) in [
            (Filter::default(), true, 3),
            (Filter::of_kinds(tools), true, 3),
            (filter(Kinds::NONE, &["b"], &["1"]), true, 1),
            (large.clone(), true, 0),
            (filter(Kinds::of(ListKind::Prompt), &["a", "b"], &["1"]), false, 0),
            (filter(tools, &["c"], &[]), false, 3),
            (filter(tools, &[], &["a"]), false, 3),
        ] {
            assert_eq!((large.covers(&small), large.excess(&small)), (is_covered, excess), "{small:?}");
        }
        assert_eq!(large.bytes(), 3);
        assert!(Filter::of_kinds(tools).has_lists_only() && !Filter::of_kinds(tools).is_empty());
        assert!(Filter::default().is_empty() && !filter(Kinds::NONE, &[], &["1"]).is_empty());
    }
}
