//! GRUB's script language: text in, statements out.
//!
//! ```text
//! if [ "${next_entry}" ] ; then          Statement::If
//!    set default="${next_entry}"            Statement::Command, words of parts: text, variables
//! fi
//! menuentry 'Debian' --class debian {    Statement::Command with a block
//! }
//! ```

use std::iter::Peekable;
use std::rc::Rc;
use std::str::Chars;

use super::GrubError;

/// Blocks within blocks; grub-mkconfig's go three deep.
const MAX_DEPTH: usize = 32;

/// Statements in order, shared by whoever runs them later.
pub(super) type Block = Rc<Vec<Statement>>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Words, and the block behind them, as `menuentry` has one.
    Command(Vec<Word>, Option<Block>),
    /// Conditions with what they lead to; the last has none if it is that of `else`.
    If(Vec<(Option<Block>, Block)>),
}

/// Parts of one word, without anything between them.
pub(super) type Word = Vec<Part>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// A variable's name, and whether it stands in quotes: then its value is not split.
    Variable(String, bool),
}

/// The statements of `text`.
pub(super) fn parse(text: &str) -> Result<Block, GrubError> {
    let mut parser = Parser {
        tokens: Tokens {
            characters: text.chars().peekable(),
            line: 1,
            again: None,
        },
        depth: 0,
    };
    let (block, end) = parser.block(&[])?;
    match end {
        End::Text => Ok(block),
        End::Word(_) | End::Brace => Err(parser.wrong("it closes nothing")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A newline or `;`.
    Separator,
    Open,
    Close,
}

struct Tokens<'a> {
    characters: Peekable<Chars<'a>>,
    line: usize,
    /// Is taken before what comes next: the end of a block, which ends a command, too.
    again: Option<Token>,
}

impl Tokens<'_> {
    fn take(&mut self) -> Option<char> {
        let character = self.characters.next();
        self.line += usize::from(character == Some('\n'));
        character
    }

    fn next(&mut self) -> Result<Option<Token>, GrubError> {
        if let Some(token) = self.again.take() {
            return Ok(Some(token));
        }
        loop {
            match self.characters.peek() {
                None => return Ok(None),
                Some(' ' | '\t' | '\r') => {
                    self.take();
                }
                Some('#') => while self.characters.next_if(|it| *it != '\n').is_some() {},
                Some('\n' | ';') => {
                    self.take();
                    return Ok(Some(Token::Separator));
                }
                Some('{') => {
                    self.take();
                    return Ok(Some(Token::Open));
                }
                Some('}') => {
                    self.take();
                    return Ok(Some(Token::Close));
                }
                Some(_) => {
                    return self
                        .word()
                        .map(|word| word.map(Token::Word).or(Some(Token::Separator)));
                }
            }
        }
    }

    /// A word; nothing where only an escaped line's end stood.
    fn word(&mut self) -> Result<Option<Word>, GrubError> {
        let mut word = Word::new();
        let mut text = String::new();
        let mut is_word = false;
        let mut braces = 0;
        while let Some(next) = self.characters.peek() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' => break,
                '}' if braces == 0 => break,
                '{' | '}' => {
                    // Within a word, as in x={a}.
                    braces = if *next == '{' { braces + 1 } else { braces - 1 };
                    text.extend(self.take());
                }
                '\'' => {
                    is_word = true;
                    self.take();
                    self.single(&mut text)?;
                }
                '"' => {
                    is_word = true;
                    self.take();
                    self.double(&mut word, &mut text)?;
                }
                '$' => {
                    is_word = true;
                    self.take();
                    self.variable(&mut word, &mut text, false)?;
                }
                '\\' => {
                    self.take();
                    // The end of a line is taken away with its backslash.
                    let escaped = self.take().filter(|it| *it != '\n');
                    is_word |= escaped.is_some();
                    text.extend(escaped);
                }
                _ => {
                    is_word = true;
                    text.extend(self.take());
                }
            }
        }
        push(&mut word, &mut text);
        if is_word && word.is_empty() {
            word.push(Part::Text(String::new()));
        }
        Ok(is_word.then_some(word))
    }

    fn single(&mut self, text: &mut String) -> Result<(), GrubError> {
        loop {
            match self.take() {
                Some('\'') => return Ok(()),
                Some(character) => text.push(character),
                None => return Err(self.wrong("a quote is not closed")),
            }
        }
    }

    fn double(&mut self, word: &mut Word, text: &mut String) -> Result<(), GrubError> {
        loop {
            match self.take() {
                Some('"') => {
                    // So that "" is a word, and "$x" is one where x is empty.
                    word.push(Part::Text(std::mem::take(text)));
                    return Ok(());
                }
                Some('$') => self.variable(word, text, true)?,
                Some('\\') => match self.take() {
                    Some('\n') => {}
                    Some(escaped @ ('$' | '"' | '\\')) => text.push(escaped),
                    Some(other) => text.extend(['\\', other]),
                    None => return Err(self.wrong("a quote is not closed")),
                },
                Some(character) => text.push(character),
                None => return Err(self.wrong("a quote is not closed")),
            }
        }
    }

    /// What stands behind a `$`.
    fn variable(
        &mut self,
        word: &mut Word,
        text: &mut String,
        is_quoted: bool,
    ) -> Result<(), GrubError> {
        let mut name = String::new();
        if self.characters.next_if_eq(&'{').is_some() {
            loop {
                match self.take() {
                    Some('}') => break,
                    Some('\n') | None => return Err(self.wrong("a variable's name is not closed")),
                    Some(character) => name.push(character),
                }
            }
        } else if let Some(special) = self.characters.next_if(|it| "?*@#".contains(*it)) {
            name.push(special);
        } else {
            let is_name = |it: &char| it.is_ascii_alphanumeric() || *it == '_';
            while let Some(character) = self.characters.next_if(is_name) {
                name.push(character);
            }
        }
        if name.is_empty() {
            text.push('$');
        } else {
            push(word, text);
            word.push(Part::Variable(name, is_quoted));
        }
        Ok(())
    }

    fn wrong(&self, what: &'static str) -> GrubError {
        GrubError::Syntax {
            line: self.line,
            what,
        }
    }
}

fn push(word: &mut Word, text: &mut String) {
    if !text.is_empty() {
        word.push(Part::Text(std::mem::take(text)));
    }
}

/// What a block ended with.
enum End {
    Text,
    Brace,
    Word(String),
}

struct Parser<'a> {
    tokens: Tokens<'a>,
    depth: usize,
}

impl Parser<'_> {
    /// Statements up to one of the words `ends`, to a brace, or to the end of the text.
    fn block(&mut self, ends: &[&str]) -> Result<(Block, End), GrubError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong("too many blocks are within each other"));
        }
        let mut statements = Vec::new();
        let end = loop {
            let word = match self.tokens.next()? {
                None => break End::Text,
                Some(Token::Close) => break End::Brace,
                Some(Token::Separator) => continue,
                Some(Token::Open) => return Err(self.wrong("a block belongs to nothing")),
                Some(Token::Word(word)) => word,
            };
            match plain(&word) {
                Some(end) if ends.contains(&end) => break End::Word(end.to_owned()),
                Some("if") => statements.push(self.condition()?),
                Some("while" | "until" | "for") => self.pass_over_loop()?,
                Some("function") => {
                    self.command(word)?;
                }
                Some("then" | "elif" | "else" | "fi" | "do" | "done") => {
                    return Err(self.wrong("a word of if or of a loop stands alone"));
                }
                _ => statements.push(self.command(word)?),
            }
        };
        self.depth -= 1;
        Ok((Rc::new(statements), end))
    }

    /// The rest of a command that begins with `word`.
    fn command(&mut self, word: Word) -> Result<Statement, GrubError> {
        let mut words = vec![word];
        loop {
            match self.tokens.next()? {
                Some(Token::Word(word)) => words.push(word),
                None | Some(Token::Separator) => return Ok(Statement::Command(words, None)),
                Some(Token::Close) => {
                    self.tokens.again = Some(Token::Close);
                    return Ok(Statement::Command(words, None));
                }
                Some(Token::Open) => {
                    let (block, end) = self.block(&[])?;
                    return match end {
                        End::Brace => Ok(Statement::Command(words, Some(block))),
                        _ => Err(self.wrong("a block is not closed")),
                    };
                }
            }
        }
    }

    /// What stands behind an `if`.
    fn condition(&mut self) -> Result<Statement, GrubError> {
        let mut branches = Vec::new();
        loop {
            let condition = self.part(&["then"])?.0;
            let (block, end) = self.part(&["elif", "else", "fi"])?;
            branches.push((Some(condition), block));
            match end.as_str() {
                "elif" => {}
                "else" => {
                    branches.push((None, self.part(&["fi"])?.0));
                    return Ok(Statement::If(branches));
                }
                _ => return Ok(Statement::If(branches)),
            }
        }
    }

    fn pass_over_loop(&mut self) -> Result<(), GrubError> {
        self.part(&["do"])?;
        self.part(&["done"])?;
        Ok(())
    }

    /// A block that must end with one of these words.
    fn part(&mut self, ends: &[&str]) -> Result<(Block, String), GrubError> {
        match self.block(ends)? {
            (block, End::Word(end)) => Ok((block, end)),
            _ => Err(self.wrong("an if or a loop is not closed")),
        }
    }

    fn wrong(&self, what: &'static str) -> GrubError {
        self.tokens.wrong(what)
    }
}

/// A word of which all is text, without quotes around it as far as that can still be seen.
fn plain(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Part::Text(text)] => Some(text),
        _ => None,
    }
}
