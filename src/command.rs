//! Parses `--stdio` into a command: run directly if it is plain words and quotes, by `sh -c`
//! otherwise.
//!
//! Running it directly saves a process and lets signals reach the server itself. Both ways have the
//! same meaning: any text that `sh` would treat in a special way, or that is in doubt, goes to the
//! shell.

/// A command to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CommandLine {
    /// Run directly: program and arguments, at least the program.
    Direct(Vec<String>),
    /// Run by `sh -c`.
    Shell(String),
}

/// Words that only a shell knows as commands.
const SHELL_WORDS: &[&str] = &[
    ".", ":", "alias", "bg", "break", "builtin", "case", "cd", "command", "continue", "declare", "do",
    "done", "elif", "else", "esac", "eval", "exec", "exit", "export", "fg", "fi", "for", "function",
    "getopts", "hash", "if", "jobs", "let", "local", "read", "readonly", "return", "select", "set", "shift",
    "shopt", "source", "then", "time", "times", "trap", "type", "typeset", "ulimit", "umask", "unalias",
    "unset", "until", "wait", "while",
];

/// Why a text is not a list of plain words.
enum NotPlain {
    /// It uses shell syntax.
    Shell,
    /// It is invalid for the shell too; the message says why.
    Wrong(&'static str),
}

impl CommandLine {
    /// Parses a command line as `sh` would.
    ///
    /// # Errors
    /// A sentence for the user: the command is empty, has a NUL character, or an unterminated quote
    /// or escape.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        // Blanks at the end stay: the last one may be escaped.
        let text = text.trim_start().trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return Err("the command is empty");
        }
        if text.contains('\0') {
            return Err("the command contains a NUL character");
        }
        match words(text) {
            Ok(words) => match words.first().map(String::as_str) {
                None | Some("") => Err("the command is empty"),
                Some(first) if SHELL_WORDS.contains(&first) => Ok(Self::Shell(text.to_owned())),
                Some(_) => Ok(Self::Direct(words)),
            },
            Err(NotPlain::Shell) => Ok(Self::Shell(text.to_owned())),
            Err(NotPlain::Wrong(why)) => Err(why),
        }
    }

    /// Returns the program, for messages: arguments may hold secrets.
    pub fn program(&self) -> &str {
        match self {
            Self::Direct(words) => words.first().map_or("", String::as_str),
            Self::Shell(_) => "sh",
        }
    }
}

/// Splits a text into plain and quoted words.
fn words(text: &str) -> Result<Vec<String>, NotPlain> {
    let mut words = Vec::new();
    // `Some("")` is a word that has begun, if only with a pair of quotes.
    let mut word: Option<String> = None;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => single_quoted(&mut rest, word.get_or_insert_default())?,
            '"' => double_quoted(&mut rest, word.get_or_insert_default())?,
            '\\' => match rest.next() {
                // A line continuation: both characters are removed.
                Some('\n') => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
                None => return Err(NotPlain::Wrong("the command ends with a backslash")),
            },
            _ if is_syntax(character, word.as_deref(), words.is_empty()) => return Err(NotPlain::Shell),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Returns whether an unquoted character is shell syntax. `word` is the word so far; `first` means
/// that it is the first word.
fn is_syntax(character: char, word: Option<&str>, first: bool) -> bool {
    match character {
        '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | '{' | '}' | '\n' => true,
        // A comment, a home directory or a negation, but only at the start of a word.
        '#' | '~' => word.is_none(),
        '!' => first && word.is_none(),
        // An assignment, or close enough to let the shell decide.
        '=' => first,
        _ => false,
    }
}

/// Reads up to the closing quote, literally.
fn single_quoted(rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), NotPlain> {
    for character in rest {
        match character {
            '\'' => return Ok(()),
            _ => word.push(character),
        }
    }
    Err(NotPlain::Wrong("unterminated single quote"))
}

/// Reads up to the closing quote. A backslash escapes only the characters that are special there.
fn double_quoted(rest: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), NotPlain> {
    while let Some(character) = rest.next() {
        match character {
            '"' => return Ok(()),
            '$' | '`' => return Err(NotPlain::Shell),
            '\\' => match rest.next() {
                Some('\n') => {}
                Some(special @ ('$' | '`' | '"' | '\\')) => word.push(special),
                Some(plain) => word.extend(['\\', plain]),
                None => break,
            },
            _ => word.push(character),
        }
    }
    Err(NotPlain::Wrong("unterminated double quote"))
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    #[test]
    fn plain_words() {
        for (text, expected) in [
            ("uvx mcp-server-time", &["uvx", "mcp-server-time"][..]),
            ("  npx  -y\t@scope/server ./  ", &["npx", "-y", "@scope/server", "./"]),
            ("'/opt/my server/run' --name 'a b'", &["/opt/my server/run", "--name", "a b"]),
            (r#"run "a b" 'c"d' e"f'g"h"#, &["run", "a b", "c\"d", "ef'gh"]),
            (r"run a\ b \'x\' \\ \$HOME", &["run", "a b", "'x'", "\\", "$HOME"]),
            (r#"run "\$x \` \" \\ \n""#, &["run", "$x ` \" \\ \\n"]),
            ("run '' \"\" x''y", &["run", "", "", "xy"]),
            ("run '$HOME' '*' '`'", &["run", "$HOME", "*", "`"]),
            (
                "run --key=value a#b a~b a!b ! -o= % ^ @ + , : ]",
                &["run", "--key=value", "a#b", "a~b", "a!b", "!", "-o=", "%", "^", "@", "+", ",", ":", "]"],
            ),
            ("run 'two\nlines' a\\\nb", &["run", "two\nlines", "ab"]),
            ("run 'a\\' b", &["run", "a\\", "b"]),
            ("./grün --näme ü", &["./grün", "--näme", "ü"]),
            ("run a\\  ", &["run", "a "]),
            ("echo exec cd", &["echo", "exec", "cd"]),
        ] {
            let expected = CommandLine::Direct(expected.iter().map(ToString::to_string).collect());
            assert_eq!(CommandLine::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn shell_syntax() {
        for text in [
            "a | b",
            "a && b",
            "a; b",
            "a &",
            "a < b",
            "a > b",
            "(a)",
            "a $HOME",
            "a `b`",
            "a *.txt",
            "a x?",
            "a [x]",
            "a {b,c}",
            "a ~/x",
            "~/bin/run",
            "a # comment",
            "# comment",
            "! a",
            "A=1 b",
            "a\nb",
            "a \"$HOME\"",
            "a \"`b`\"",
            "cd /x",
            "exec node server.js",
            ". ./env",
            "if true",
            "a 'b' | c",
            "$CMD",
            "a {",
            "a}",
            "a $(echo ')')",
            "a=b",
        ] {
            assert_eq!(CommandLine::parse(text), Ok(CommandLine::Shell(text.into())), "{text}");
        }
        assert_eq!(CommandLine::parse("  a | b\n"), Ok(CommandLine::Shell("a | b".into())));
    }

    #[test]
    fn refused() {
        for text in ["", " \t\n", "''", "\"\" x", "a 'b", "a \"b", "a \"b\\", "a \\", "a\0b", "'it''s"] {
            assert!(CommandLine::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn program_names() {
        for (text, program) in [("npx -y x", "npx"), ("a | b", "sh")] {
            assert_eq!(CommandLine::parse(text).unwrap().program(), program);
        }
    }
}
