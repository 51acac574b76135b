//! The names of guests in `/etc/hosts` of VM 0.

/// The lines around those that are ours.
const BEGIN: &str =
    "# Guests of Microvisor's networks: vmctl writes the lines up to the next comment.";
const END: &str = "# End of the guests of Microvisor's networks.";

/// Returns the text of a hosts file (`hosts(5)`) with `lines` in place of the earlier ones of vmctl's. What
/// others wrote stays as it is, before and after.
pub(super) fn with_lines(text: &str, lines: &str) -> String {
    let mut before = text;
    let mut behind = "";
    if let Some(begin) = line(text, BEGIN) {
        before = &text[..begin];
        let rest = &text[begin..];
        // A file that lost its end ends with our lines.
        behind = line(rest, END).map_or("", |end| &rest[end + END.len()..]);
        behind = behind.strip_prefix('\n').unwrap_or(behind);
    }
    if lines.is_empty() {
        return format!("{before}{behind}");
    }
    let newline = if before.is_empty() || before.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    format!("{before}{newline}{BEGIN}\n{lines}{END}\n{behind}")
}

/// Returns where the line `wanted` begins.
fn line(text: &str, wanted: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end() == wanted {
            return Some(at);
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays() {
        let lines = "10.77.0.9 web.lan0 web\n";
        for (before, behind) in [
            ("", ""),
            ("127.0.0.1 localhost\n", ""),
            ("127.0.0.1 localhost\n", "::1 ip6-localhost"),
            ("# web\n\n", "# End\n"),
        ] {
            let text = format!("{before}{BEGIN}\nold\n{END}\n{behind}");
            let new = with_lines(&text, lines);
            assert_eq!(new, format!("{before}{BEGIN}\n{lines}{END}\n{behind}"));
            assert_eq!(with_lines(&new, lines), new);
            assert_eq!(with_lines(&new, ""), format!("{before}{behind}"));
            assert_eq!(with_lines(&with_lines(before, lines), ""), before);
        }
        assert_eq!(with_lines("a", "b\n"), format!("a\n{BEGIN}\nb\n{END}\n"));
        assert_eq!(with_lines("", ""), "");
        // Without an end.
        let text = format!("a\n{BEGIN}\nold");
        assert_eq!(with_lines(&text, "b\n"), format!("a\n{BEGIN}\nb\n{END}\n"));
    }
}
