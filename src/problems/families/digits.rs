//! Digits and bases: digit sums, reversals, numerals in other bases, page numbers.

use super::{big, digit_sum, digits_in, from_digits, reversed, sums};
use crate::problems::family::Family;

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new("digit_sum_of_multiple", 1)
            .number("factor", 11..=999)
            .keep(|p| p.a % 10 != 0)
            .story("{name} writes down {a} * n and adds up its digits. What is the sum?")
            .story("A ticket has number {a} * n. Its price is the sum of the digits. What is the price?")
            .story("Multiply n by {a}. How much do the digits of the result sum to?")
            .code("print(sum(int(d) for d in str({a} * n)))")
            .explain_with(|p, n, v| {
                format!("{} * {n} = {} and its digits sum to {v}.", p.a, p.a * n)
            })
            .slip("{a} * n", "n", "The number is {a} * n, not n.")
            .slip("{a} * n", "{a} + n", "It is {a} times n, not plus.")
            .slip("sum(int(d) for d in str({a} * n))", "len(str({a} * n))", "Digits are summed, not counted.")
            .slip("sum(int(d) for d in str({a} * n))", "{a} * n % 10", "All digits count, not only the last.")
            .at(|p, n| big(digit_sum(&big(p.a * n)))),
        Family::new("squared_digits", 1)
            .number("factor", 11..=499)
            .number("addition", 1..=9)
            .keep(|p| p.a % 10 != 0)
            .story("{name} writes {a} * n + {b}, squares each digit and adds the squares. What is the sum?")
            .story("Every digit d of {a} * n + {b} pays d * d coins. How many coins are paid?")
            .story("Multiply n by {a} and add {b}. What is the sum of the squares of the digits?")
            .code("print(sum(int(d) ** 2 for d in str({a} * n + {b})))")
            .explain_with(|p, n, v| {
                format!("The squares of the digits of {} sum to {v}.", p.a * n + p.b)
            })
            .slip(" ** 2", "", "Each digit must be squared.")
            .slip("{a} * n", "n", "The number is {a} * n + {b}.")
            .slip(" + {b}", "", "The {b} must be added first.")
            .slip("int(d) ** 2", "int(d) ** 3", "Digits are squared, not cubed.")
            .at(|p, n| big(digits_in(big(p.a * n + p.b), 10).iter().map(|d| d * d).sum())),
        Family::new("coin_exchange", 1)
            .number("factor", 2..=40)
            .number("coins per note", 3..=9)
            .story("{a} * n coins are exchanged: {b} coins for a bronze piece, {b} bronze for a silver one, and so on upward. How many pieces remain in the end?")
            .story("{name} packs {a} * n {things}: {b} in a bag, {b} bags in a box, {b} boxes in a crate and so on, only full ones. How many loose parts are left, of all sizes?")
            .story("Write {a} * n in base {b}. What is the sum of its digits?")
            .code("x = {a} * n\ns = 0\nwhile x > 0:\n    s += x % {b}\n    x //= {b}\nprint(s)")
            .explain_with(|p, n, v| {
                let mut digits = digits_in(big(p.a * n), p.b);
                digits.reverse();
                let digits: Vec<String> = digits.iter().map(i64::to_string).collect();
                format!("{} splits into {}, together {v}.", p.a * n, digits.join(" + "))
            })
            .slip("x = {a} * n", "x = n", "The amount is {a} * n, not n.")
            .slip("s += x % {b}", "s += x // {b}", "What is left over is the remainder.")
            .slip("s += x % {b}", "s += 1", "The parts are summed, not counted.")
            .slip("s = 0", "s = 1", "The sum starts at 0.")
            .at(|p, n| big(digits_in(big(p.a * n), p.b).iter().sum())),
        Family::new("backwards", 1)
            .number("factor", 7..=99)
            .number("addition", 1..=99)
            .keep(|p| p.a % 10 != 0)
            .story("{name} writes {a} * n + {b} and reads it from right to left. Which number is read?")
            .story("A mirror shows the digits of {a} * n + {b} in reverse order. What number does it show?")
            .story("Multiply n by {a}, add {b} and turn the digits around. What comes out?")
            .code("print(int(str({a} * n + {b})[::-1]))")
            .explain_with(|p, n, v| format!("{} read backwards is {v}.", p.a * n + p.b))
            .slip("[::-1]", "", "The digits must be reversed.")
            .slip(" + {b}", "", "The {b} must be added first.")
            .slip("{a} * n + {b}", "{a} * (n + {b})", "The {b} are added after the product.")
            .slip("{a} * n", "n", "The factor {a} was left out.")
            .at(|p, n| reversed(&big(p.a * n + p.b))),
        Family::new("side_by_side", 1)
            .number("first factor", 1..=40)
            .number("second factor", 1..=40)
            .keep(|p| p.a != p.b)
            .story("{name} writes {a} * n and right behind it {b} * n, with no space. Which number stands there?")
            .story("A sign shows {a} * n and {b} * n glued together as one number. Which number is it?")
            .story("Join the digits of {a} * n and then those of {b} * n. What number results?")
            .code("print(str({a} * n) + str({b} * n))")
            .explain_with(|p, n, v| format!("{} and {} joined make {v}.", p.a * n, p.b * n))
            .slip("str({a} * n) + str({b} * n)", "{a} * n + {b} * n", "The digits are joined, not added.")
            .slip("str({a} * n) + str({b} * n)", "str({b} * n) + str({a} * n)", "{a} * n comes first.")
            .slip("str({b} * n)", "str({b})", "The second part is {b} * n.")
            .slip("str({a} * n)", "str({a})", "The first part is {a} * n.")
            .at(|p, n| format!("{}{}", p.a * n, p.b * n).parse().expect("digits are a number")),
        Family::new("page_digits", 1)
            .number("pages per chapter", 6..=40)
            .number("digit", 1..=9)
            .story("A book has n chapters of {a} pages, numbered from 1 on. How often is the digit {b} printed in the page numbers?")
            .story("{name} numbers {a} * n doors from 1 on. How many number plates with the single digit {b} are needed?")
            .story("Write all numbers from 1 to {a} * n. How many times do you write the digit {b}?")
            .code("print(sum(str(i).count(\"{b}\") for i in range(1, {a} * n + 1)))")
            .explain("From 1 to {a} * {n} the digit {b} occurs {v} times.")
            .slip("str(i).count(\"{b}\")", "\"{b}\" in str(i)", "A number may hold the digit twice.")
            .slip("{a} * n + 1", "n + 1", "The last number is {a} * n.")
            .slip("{a} * n + 1", "{a} * n", "The last number counts too.")
            .slip("str(i).count(\"{b}\")", "str(i)[-1] == \"{b}\"", "All digits count, not only the last.")
            .list(|p, count| {
                let wanted = char::from(b'0' + p.b as u8);
                let mut seen = 0;
                let mut page = 0;
                (0..count)
                    .map(|_| {
                        for _ in 0..p.a {
                            page += 1;
                            seen += page.to_string().chars().filter(|&c| c == wanted).count();
                        }
                        big(seen as i64)
                    })
                    .collect()
            }),
        Family::new("foreign_numeral", 1)
            .number("factor", 2..=60)
            .number("base", 3..=9)
            .keep(|p| p.a % p.b != 0)
            .story("{name} writes {a} * n in base {b}. Which digits stand there?")
            .story("How is the number {a} * n written by a people with {b} fingers, who count in base {b}?")
            .story("A meter has counted {a} * n steps from 0. Its wheels have {b} digits each, from 0 to {b-1}. What does it show, without leading zeros?")
            .code("x = {a} * n\ns = \"\"\nwhile x > 0:\n    s = str(x % {b}) + s\n    x //= {b}\nprint(s)")
            .explain("{a} * {n} in base {b} is {v}.")
            .slip("str(x % {b}) + s", "s + str(x % {b})", "The lowest digit belongs to the right.")
            .slip("x = {a} * n", "x = n", "The number is {a} * n, not n.")
            .slip("str(x % {b})", "str(x // {b})", "Each digit is a remainder.")
            .at(|p, n| from_digits(&digits_in(big(p.a * n), p.b), 10)),
        Family::new("number_and_digits", 1)
            .number("factor", 2..=60)
            .number("digit factor", 2..=20)
            .story("{name} gets {a} * n coins, and {b} coins more for each unit of the digit sum of n. How many coins?")
            .story("Take {a} times n and add {b} times the sum of the digits of n. What is it?")
            .story("House n pays {a} coins per number, so {a} * n, and {b} times the sum of the digits of n on top. How much is paid?")
            .code("print({a} * n + {b} * sum(int(d) for d in str(n)))")
            .slip("{a} * n + ", "", "The part {a} * n was left out.")
            .slip("{b} * sum", "sum", "The factor {b} was left out.")
            .slip("sum(int(d) for d in str(n))", "len(str(n))", "Digits are summed, not counted.")
            .slip("sum(int(d) for d in str(n))", "n % 10", "All digits count, not only the last.")
            .at(|p, n| big(p.a * n + p.b * digit_sum(&big(n)))),
        Family::new("total_digits_sum", 1)
            .number("factor", 3..=199)
            .keep(|p| p.a % 10 != 0)
            .story("{name} writes the first n multiples of {a}, from {a} on, and adds up all their digits. What is the sum?")
            .story("Ticket k has number {a} * k and costs the sum of its digits. What do tickets 1 to n cost together?")
            .story("Write {a}, 2 * {a}, 3 * {a}, up to n * {a}. What do all written digits sum to?")
            .code("print(sum(int(d) for i in range(1, n + 1) for d in str({a} * i)))")
            .slip("{a} * i", "i", "The numbers are {a} * i, not i.")
            .slip("int(d) for", "1 for", "Digits are summed, not counted.")
            .slip("for i in range(1, n + 1) for d in str({a} * i)", "for d in str({a} * n)", "All n multiples count, not only the last.")
            .list(|p, count| {
                sums((1..=count as i64).map(|i| big(digit_sum(&big(p.a * i)))).collect())
            }),
        Family::new("digits_and_back", 1)
            .number("factor", 12..=99)
            .number("start", 1..=60)
            .keep(|p| p.a % 10 != 0)
            .story("{name} adds {a} * n and the same number read from right to left, and {b} more. What is the sum?")
            .story("Take {a} * n, add the number with its digits in reverse order, then add {b}. What is it?")
            .story("A box holds {a} * n {things}, a second one as many as {a} * n read backwards, a third one {b}. How many in all?")
            .code("x = {a} * n\nprint(x + int(str(x)[::-1]) + {b})")
            .explain_with(|p, n, v| {
                format!("{} + {} + {} = {v}.", p.a * n, reversed(&big(p.a * n)), p.b)
            })
            .slip("[::-1]", "", "The second number is reversed.")
            .slip("x + int(str(x)[::-1])", "int(str(x)[::-1])", "The number itself is added too.")
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .slip("x = {a} * n", "x = {a} + n", "It is {a} times n, not plus.")
            .at(|p, n| reversed(&big(p.a * n)) + p.a * n + p.b),
    ]
}
