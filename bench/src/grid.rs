//! A table, for people at a terminal or in a Markdown file.

/// Rows of as many cells as the head has.
pub(crate) struct Grid {
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Grid {
    /// Whether there is nothing below the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// In columns; the first to the left, the others to the right.
    pub(crate) fn people(&self) -> String {
        let cells = |row: &Vec<String>| -> Vec<String> { row.iter().map(|cell| clean(cell)).collect() };
        let all: Vec<Vec<String>> = std::iter::once(&self.head).chain(&self.rows).map(cells).collect();
        let width = |at: usize| all.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
        let mut text = String::new();
        for row in &all {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = width(at).unwrap_or(0);
                line += &if at == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
            }
            text += line.trim_end();
            text += "\n";
        }
        text
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |row: &Vec<String>| {
            let cells: Vec<_> = row.iter().map(|cell| clean(cell).replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = line(&self.head);
        text += &format!("|{}\n", "---|".repeat(self.head.len()));
        text.extend(self.rows.iter().map(line));
        text
    }
}

/// Without what moves a terminal's cursor or ends a line: names come out of files.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_below_each_other_and_stay_cells() {
        let text = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let grid =
            Grid { head: text(["µs", "A"]), rows: vec![text(["read|64", "4.59"]), text(["x\u{1b}[2J\n", "10"])] };
        assert_eq!(grid.people(), "µs          A\nread|64  4.59\nx?[2J?     10\n");
        assert_eq!(grid.markdown(), "| µs | A |\n|---|---|\n| read\\|64 | 4.59 |\n| x?[2J? | 10 |\n");
        assert!(!grid.is_empty() && Grid { rows: Vec::new(), ..grid }.is_empty());
    }
}
