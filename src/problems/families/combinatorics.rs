//! Combinatorics and partitions: choices, orders, tilings, change and words.

use super::{big, choose, extend, iterate};
use crate::problems::family::Family;
use num_bigint::BigInt;

/// Counts the ways to write 0, 1, 2, ... as unordered sums of `parts`.
fn partitions(count: usize, parts: &[i64]) -> Vec<BigInt> {
    let mut ways = vec![big(0); count];
    ways[0] = big(1);
    for &part in parts {
        for i in part as usize..count {
            let more = ways[i - part as usize].clone();
            ways[i] += more;
        }
    }
    ways
}

pub(crate) fn families() -> Vec<Family> {
    vec![
        Family::new("choose_team", 0)
            .number("extra people", 2..=30)
            .number("team size", 2..=5)
            .keep(|p| p.a >= p.b)
            .story("A club has n + {a} people. How many different teams of {b} can be formed?")
            .story("{name} owns n + {a} different {things} and picks {b} of them for a trip. How many choices are there?")
            .story("From n + {a} cards {b} are drawn, the order does not matter. How many hands are possible?")
            .import("comb")
            .code("print(comb(n + {a}, {b}))")
            .explain("There are {v} ways to pick {b} out of {n} + {a}.")
            .slip("n + {a}", "n", "There are n + {a}, not n.")
            .slip("comb(n + {a}, {b})", "(n + {a}) ** {b}", "Nobody is picked twice.")
            .slip("comb(n + {a}, {b})", "(n + {a}) * {b}", "Choices are counted, not products.")
            .at(|p, n| choose(n + p.a, p.b)),
        Family::new("grid_walks", 1)
            .number("steps up", 2..=8)
            .number("price", 2..=30)
            .story("{name} walks n steps right and {a} steps up, in any order. Each possible way is paid {b} coins. How many coins?")
            .story("A robot makes n moves east and {a} moves north. Every route gets {b} lamps. How many lamps in all?")
            .story("Words have n letters R and {a} letters U. Each different word costs {b}. What do all cost?")
            .import("comb")
            .code("print(comb(n + {a}, {a}) * {b})")
            .explain("There are {v} / {b} ways to order {n} and {a} steps.")
            .slip(" * {b}", "", "The {b} for each way was left out.")
            .slip("n + {a}", "n", "There are n + {a} steps in all.")
            .slip("comb(n + {a}, {a})", "n * {a}", "The orders are counted, not cells.")
            .at(|p, n| choose(n + p.a, p.a) * p.b),
        Family::new("growing_product", 0)
            .number("start", 1..=20)
            .number("offset", 1..=20)
            .story("A number starts at {a}. Step k multiplies it by k + {b}. What is it after n steps?")
            .story("{name} has {a} {things}. In {unit} k they become k + {b} times as many. How many after n {unit}s?")
            .story("Start with {a}, then multiply by 1 + {b}, 2 + {b}, up to n + {b}. What is the product?")
            .code("x = {a}\nfor i in range(1, n + 1):\n    x *= i + {b}\nprint(x)")
            .slip("i + {b}", "i", "The factors are i + {b}, not i.")
            .slip("i + {b}", "{b}", "The factors grow by one each step.")
            .slip("x *= i", "x += i", "It must be multiplied, not added.")
            .slip("x = {a}", "x = 1", "The start is {a}, not 1.")
            .list(|p, count| iterate(count, p.a, |x, i| x * (i + p.b))),
        Family::new("medals", 1)
            .number("extra runners", 2..=30)
            .number("medals", 2..=4)
            .keep(|p| p.a >= p.b)
            .story("n + {a} runners race for {b} different medals. In how many ways can the medals be given?")
            .story("{name} has n + {a} {things} and puts {b} of them in a row. How many different rows are possible?")
            .story("A lock takes {b} different letters out of n + {a}, order counts. How many codes are there?")
            .import("perm")
            .code("print(perm(n + {a}, {b}))")
            .explain("{b} places out of {n} + {a} can be filled in {v} ways.")
            .slip("n + {a}", "n", "There are n + {a}, not n.")
            .slip("perm(n + {a}, {b})", "(n + {a}) ** {b}", "Nobody can be taken twice.")
            .slip("perm(n + {a}, {b})", "(n + {a}) * {b}", "Ordered choices are counted.")
            .at(|p, n| ((n + p.a - p.b + 1)..=(n + p.a)).map(big).product()),
        Family::new("brackets", 0)
            .number("price", 2..=60)
            .number("extra", 1..=20)
            .story("A doorman sees n people enter and n leave, and the room is never less than empty. Each possible order pays {a} coins, plus {b}. How many coins?")
            .story("A line has n plus signs and n minus signs; from the left there are never more minus than plus. Take {a} times the number of such lines, plus {b}.")
            .story("{name} takes n steps up and n down and never goes below the start. Each such walk costs {a}, the map {b}. What is the price of all?")
            .import("comb")
            .code("print({a} * comb(2 * n, n) // (n + 1) + {b})")
            .slip(" // (n + 1)", "", "Orders that go below are not allowed.")
            .slip("comb(2 * n, n)", "comb(2 * n, 2)", "n of the 2 * n places are chosen.")
            .slip(" + {b}", "", "The {b} at the end were left out.")
            .at(|p, n| choose(2 * n, n) / (n + 1) * p.a + p.b),
        Family::new("ordered_tiles", 0)
            .number("short tile", 1..=6)
            .number("long tile", 2..=9)
            .number("price", 2..=20)
            .keep(|p| p.a < p.b && super::gcd(p.a, p.b) == 1)
            .story("A strip of length n is laid with tiles of length {a} and {b}, in any order. Each way earns {c} coins. How many coins?")
            .story("{name} climbs n steps, taking {a} or {b} at a time. How many different ways are there, times {c}?")
            .story("A tune of n beats is made of notes of {a} and {b} beats. Every possible tune pays {c}. What do all pay?")
            .code("c = [1] + [0] * n\nfor i in range(1, n + 1):\n    for k in ({a}, {b}):\n        if k <= i:\n            c[i] += c[i - k]\nprint(c[n] * {c})")
            .slip(" * {c}", "", "The factor {c} was left out.")
            .slip("c[i] += c[i - k]", "c[i] = c[i - k]", "The ways must be added up.")
            .slip("k <= i", "k < i", "A tile may fill the strip exactly.")
            .slip("({a}, {b})", "({a}, {a})", "The second tile has length {b}.")
            .list(|p, count| {
                let mut ways = vec![big(1)];
                for i in 1..count as i64 {
                    let part = |k: i64| if k <= i { ways[(i - k) as usize].clone() } else { big(0) };
                    let next = part(p.a) + part(p.b);
                    ways.push(next);
                }
                ways.into_iter().map(|w| w * p.c).collect()
            }),
        Family::new("coin_change", 1)
            .number("small coin", 2..=8)
            .number("big coin", 3..=15)
            .keep(|p| p.a < p.b)
            .story("There are coins of 1, {a} and {b}. In how many ways can a price of n be paid, order not counted?")
            .story("{name} packs n {things} into bags of 1, {a} or {b}. How many different sets of bags hold exactly n?")
            .story("Write n as a sum of numbers 1, {a} and {b}; the order does not matter. How many ways are there?")
            .code("c = [1] + [0] * n\nfor k in (1, {a}, {b}):\n    for i in range(k, n + 1):\n        c[i] += c[i - k]\nprint(c[n])")
            .explain("There are {v} ways to make {n} from 1, {a} and {b}.")
            .slip("(1, {a}, {b})", "(1, {a})", "The coin {b} was left out.")
            .slip("(1, {a}, {b})", "(1, {b})", "The coin {a} was left out.")
            .slip("c[i] += c[i - k]", "c[i] = c[i - k]", "The ways must be added up.")
            .slip("range(k, n + 1)", "range(k, n)", "The price n itself must be reached.")
            .list(|p, count| partitions(count + 1, &[1, p.a, p.b]).split_off(1)),
        Family::new("three_coins", 5)
            .number("first coin", 2..=6)
            .number("second coin", 3..=9)
            .number("third coin", 4..=12)
            .keep(|p| p.a < p.b && p.b < p.c && super::gcd(p.a, p.b) == 1)
            .story("Stamps cost {a}, {b} or {c}. In how many ways can exactly n be put on a letter, order not counted?")
            .story("{name} splits n people into groups of {a}, {b} or {c}; only the numbers of groups matter. How many ways are there?")
            .story("Write n as a sum of numbers {a}, {b} and {c}; the order does not matter. How many ways are there?")
            .code("c = [1] + [0] * n\nfor k in ({a}, {b}, {c}):\n    for i in range(k, n + 1):\n        c[i] += c[i - k]\nprint(c[n])")
            .explain("There are {v} ways to make {n} from {a}, {b} and {c}.")
            .slip("({a}, {b}, {c})", "({a}, {b})", "The part {c} was left out.")
            .slip("({a}, {b}, {c})", "({b}, {c})", "The part {a} was left out.")
            .slip("c[i] += c[i - k]", "c[i] = c[i - k]", "The ways must be added up.")
            .slip("[1] + [0] * n", "[1] * (n + 1)", "Only the sum 0 has one way at first.")
            .list(|p, count| partitions(count + 5, &[p.a, p.b, p.c]).split_off(5)),
        Family::new("colored_tiles", 0)
            .number("short colors", 1..=15)
            .number("long colors", 1..=15)
            .story("A strip of length n is laid with tiles of length 1 in {a} colors and of length 2 in {b} colors. How many ways are there?")
            .story("{name} climbs n stairs. A single step can be done in {a} ways, a double step in {b} ways. How many ways in all?")
            .story("A signal of n seconds uses short tones (1 second, {a} kinds) and long ones (2 seconds, {b} kinds). How many signals are there?")
            .code("x, y = 1, {a}\nfor i in range(n):\n    x, y = y, {a} * y + {b} * x\nprint(x)")
            .slip("x, y = 1, {a}", "x, y = 0, {a}", "An empty strip has one way.")
            .slip("{a} * y + {b} * x", "{a} * x + {b} * y", "The {b} belongs to the older value.")
            .slip("print(x)", "print(y)", "Value n is x, not y.")
            .slip("{a} * y + {b} * x", "{a} * y + x", "The {b} long colors were left out.")
            .list(|p, count| {
                extend(count, &[1, p.a], |t| &t[t.len() - 1] * p.a + &t[t.len() - 2] * p.b)
            }),
        Family::new("small_parts", 1)
            .number("largest part", 3..=9)
            .number("price", 2..=30)
            .story("In how many ways is n a sum of numbers from 1 to {a}, order not counted? Give {b} times that.")
            .story("{name} stacks n {things} in piles of at most {a}. Each way, by pile sizes only, earns {b} coins. How many coins?")
            .story("n people sit at tables of 1 to {a} seats, all seats used; only the table sizes count. What is {b} times the number of ways?")
            .code("c = [1] + [0] * n\nfor k in range(1, {a} + 1):\n    for i in range(k, n + 1):\n        c[i] += c[i - k]\nprint(c[n] * {b})")
            .slip("{a} + 1", "{a}", "Parts of size {a} are allowed too.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .slip("c[i] += c[i - k]", "c[i] = c[i - k]", "The ways must be added up.")
            .slip("range(1, {a} + 1)", "range(2, {a} + 1)", "Parts of size 1 are allowed too.")
            .list(|p, count| {
                let parts: Vec<i64> = (1..=p.a).collect();
                partitions(count + 1, &parts).split_off(1).into_iter().map(|w| w * p.b).collect()
            }),
        Family::new("choose_few", 1)
            .number("most", 2..=6)
            .number("price", 2..=40)
            .story("{name} takes at most {a} of n different {things}, maybe none. Each possible choice costs {b}. What do all choices cost?")
            .story("Of n lamps at most {a} may burn. Every such picture pays {b} coins. How many coins in all?")
            .story("How many sets with {a} or fewer members can be made from n people? Give {b} times that, the empty set included.")
            .import("comb")
            .code("print(sum(comb(n, i) for i in range({a} + 1)) * {b})")
            .slip("range({a} + 1)", "range({a})", "Exactly {a} is allowed too.")
            .slip("range({a} + 1)", "range(1, {a} + 1)", "The empty choice counts too.")
            .slip("sum(comb(n, i) for i in range({a} + 1))", "comb(n, {a})", "Smaller choices count too.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .at(|p, n| (0..=p.a).map(|k| choose(n, k)).sum::<BigInt>() * p.b),
        Family::new("last_seat", 0)
            .number("first value", 1..=12)
            .number("price", 2..=20)
            .story("There is {a} way to start. With k people there are k - 1 times as many ways as with k - 1 and k - 2 people together, and 1 person gives 0. With n people, what is {b} times the ways?")
            .story("Value 0 is {a}, value 1 is 0. Value k is (k - 1) times the sum of the two values before it. What is {b} times value n?")
            .story("A list starts {a}, 0 at places 0 and 1. At place k stands k - 1 times the sum of the last two. What is {b} times the entry at n?")
            .code("x, y = {a}, 0\nfor i in range(n):\n    x, y = y, (i + 1) * (x + y)\nprint(x * {b})")
            .slip("(i + 1) * (x + y)", "x + y", "The factor that grows was left out.")
            .slip("(i + 1)", "i", "The factor starts at 1.")
            .slip(" * {b}", "", "The factor {b} was left out.")
            .slip("x, y = {a}, 0", "x, y = {a}, 1", "Value 1 is 0.")
            .list(|p, count| {
                extend(count, &[p.a, 0], |t| {
                    (&t[t.len() - 1] + &t[t.len() - 2]) * (t.len() as i64 - 1)
                })
                .into_iter()
                .map(|x| x * p.b)
                .collect()
            }),
    ]
}
