//! The frame of a page: its head, style, sections and tables.

const STYLE: &str = include_str!("style.css");

/// A page under construction.
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    /// Starts a page with its title and one line below it.
    pub(crate) fn new(title: &str, subtitle: &str) -> Self {
        let body = format!(
            "<header><h1>{}</h1><p class=\"subtitle\">{}</p></header>",
            escape(title),
            escape(subtitle)
        );
        Self { title: title.to_owned(), body }
    }

    /// Adds ready HTML.
    pub(crate) fn push(&mut self, html: &str) -> &mut Self {
        self.body.push_str(html);
        self
    }

    /// Adds a section: heading, explanation (plain text), ready HTML.
    pub(crate) fn section(&mut self, heading: &str, explanation: &str, html: &str) -> &mut Self {
        let note = match explanation {
            "" => String::new(),
            text => format!("<p class=\"note\">{}</p>", escape(text)),
        };
        self.push(&format!("<section><h2>{}</h2>{note}{html}</section>", escape(heading)))
    }

    /// Returns the whole document.
    pub(crate) fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}\n</main>\n\
             </body>\n</html>\n",
            escape(&self.title),
            self.body
        )
    }
}

/// Writes out the characters of `text` that mean something in HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Puts charts or texts side by side, two in a row, each with a caption (ready HTML).
pub(crate) fn figures(figures: &[(String, String)]) -> String {
    side_by_side("figures", figures)
}

/// Puts charts or texts side by side, three in a row.
pub(crate) fn thirds(figures: &[(String, String)]) -> String {
    side_by_side("figures thirds", figures)
}

fn side_by_side(class: &str, figures: &[(String, String)]) -> String {
    let figure = |(caption, html): &(String, String)| {
        let caption = match caption.as_str() {
            "" => String::new(),
            caption => format!("<figcaption>{caption}</figcaption>"),
        };
        format!("<figure>{caption}{html}</figure>")
    };
    let all: String = figures.iter().map(figure).collect();
    format!("<div class=\"{class}\">{all}</div>")
}

/// Writes names beside the colours in which they are drawn.
pub(crate) fn legend<'a>(entries: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let items: String = entries
        .into_iter()
        .map(|(name, class)| format!("<span class=\"key {class}\"><i></i>{}</span>", escape(name)))
        .collect();
    format!("<span class=\"legend\">{items}</span>")
}

/// Writes a table; the first column holds names, the others numbers.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let head = match header.iter().all(String::is_empty) {
        true => String::new(),
        false => format!("<thead><tr>{}</tr></thead>", cells("th", &header)),
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>", cells("td", row))).collect();
    format!("<div class=\"scroll\"><table>{head}<tbody>{body}</tbody></table></div>")
}

/// Writes a table of names and texts.
pub(crate) fn facts(facts: &[(String, String)]) -> String {
    let rows: String = facts
        .iter()
        .map(|(name, text)| {
            format!("<tr><td>{}</td><td class=\"text\">{}</td></tr>", escape(name), escape(text))
        })
        .collect();
    format!("<div class=\"scroll\"><table><tbody>{rows}</tbody></table></div>")
}

/// Writes a text of many lines as it is.
pub(crate) fn verbatim(text: &str) -> String {
    format!("<pre>{}</pre>", escape(text))
}

/// Folds ready HTML away under a title.
pub(crate) fn folded(title: &str, html: &str) -> String {
    format!("<details><summary>{}</summary>{html}</details>", escape(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_become_markup() {
        let evil = "<script>alert('&\"')</script>";
        let mut page = Page::new(evil, evil);
        let row = vec![evil.to_owned(), evil.to_owned()];
        let parts = [
            table(&[evil], &[row]),
            facts(&[(evil.into(), evil.into())]),
            verbatim(evil),
            folded(evil, ""),
            legend([(evil, "c1".to_owned())]),
        ];
        page.section(evil, evil, &parts.concat());
        let html = page.finish();
        assert!(!html.contains("<script"));
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;&amp;&quot;&#39;)").count(), 13);
    }

    #[test]
    fn a_page_stands_alone() {
        let html = Page::new("a", "b").finish();
        assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"));
        for outside in ["http:", "https:", "src=", "<link", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
