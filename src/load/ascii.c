/*
 * ascii.c -- Latin letters without their accents: "Môj účet" -> "Moj ucet". Pure; any thread.
 *
 * For destinations whose names are ASCII. The tables are what Unicode's compatibility decomposition leaves when the
 * combining marks are taken away, plus the letters that have none (ß ss, đ d, ł l). Letters of other scripts vanish, as
 * the service's own clean-up lets them.
 */
#include "load_internal.h"

#include <stdint.h>
#include <string.h>

/* clang-format off */
/* U+00C0 .. U+024F */
static const char latin[][4] = {
    "A", "A", "A", "A", "A", "A", "AE", "C", "E", "E", "E", "E", "I", "I", "I", "I", "D", "N", "O", "O", "O", "O",
    "O", "", "O", "U", "U", "U", "U", "Y", "TH", "ss", "a", "a", "a", "a", "a", "a", "ae", "c", "e", "e", "e", "e",
    "i", "i", "i", "i", "d", "n", "o", "o", "o", "o", "o", "", "o", "u", "u", "u", "u", "y", "th", "y", "A", "a", "A",
    "a", "A", "a", "C", "c", "C", "c", "C", "c", "C", "c", "D", "d", "D", "d", "E", "e", "E", "e", "E", "e", "E", "e",
    "E", "e", "G", "g", "G", "g", "G", "g", "G", "g", "H", "h", "H", "h", "I", "i", "I", "i", "I", "i", "I", "i", "I",
    "i", "IJ", "ij", "J", "j", "K", "k", "k", "L", "l", "L", "l", "L", "l", "", "", "L", "l", "N", "n", "N", "n", "N",
    "n", "n", "N", "n", "O", "o", "O", "o", "O", "o", "OE", "oe", "R", "r", "R", "r", "R", "r", "S", "s", "S", "s",
    "S", "s", "S", "s", "T", "t", "T", "t", "T", "t", "U", "u", "U", "u", "U", "u", "U", "u", "U", "u", "U", "u", "W",
    "w", "Y", "y", "Y", "Z", "z", "Z", "z", "Z", "z", "s", "b", "B", "", "", "", "", "", "C", "c", "D", "D", "", "",
    "", "", "", "", "F", "f", "G", "", "", "", "I", "K", "k", "l", "", "", "N", "n", "O", "O", "o", "", "", "P", "p",
    "", "", "", "", "", "t", "T", "t", "T", "U", "u", "", "V", "Y", "y", "Z", "z", "", "", "", "", "", "", "", "", "",
    "", "", "", "", "DZ", "Dz", "dz", "LJ", "Lj", "lj", "NJ", "Nj", "nj", "A", "a", "I", "i", "O", "o", "U", "u", "U",
    "u", "U", "u", "U", "u", "U", "u", "", "A", "a", "A", "a", "AE", "ae", "", "", "G", "g", "K", "k", "O", "o", "O",
    "o", "", "", "j", "DZ", "Dz", "dz", "G", "g", "", "", "N", "n", "A", "a", "AE", "ae", "O", "o", "A", "a", "A",
    "a", "E", "e", "E", "e", "I", "i", "I", "i", "O", "o", "O", "o", "R", "r", "R", "r", "U", "u", "U", "u", "S", "s",
    "T", "t", "", "", "H", "h", "", "d", "", "", "", "", "A", "a", "E", "e", "O", "o", "O", "o", "O", "o", "O", "o",
    "Y", "y", "l", "n", "t", "j", "", "", "A", "C", "c", "L", "T", "s", "z", "", "", "B", "U", "", "E", "e", "J", "j",
    "Q", "q", "R", "r", "Y", "y",
};
/* U+1E00 .. U+1EFF */
static const char latin_additional[][4] = {
    "A", "a", "B", "b", "B", "b", "B", "b", "C", "c", "D", "d", "D", "d", "D", "d", "D", "d", "D", "d", "E", "e", "E",
    "e", "E", "e", "E", "e", "E", "e", "F", "f", "G", "g", "H", "h", "H", "h", "H", "h", "H", "h", "H", "h", "I", "i",
    "I", "i", "K", "k", "K", "k", "K", "k", "L", "l", "L", "l", "L", "l", "L", "l", "M", "m", "M", "m", "M", "m", "N",
    "n", "N", "n", "N", "n", "N", "n", "O", "o", "O", "o", "O", "o", "O", "o", "P", "p", "P", "p", "R", "r", "R", "r",
    "R", "r", "R", "r", "S", "s", "S", "s", "S", "s", "S", "s", "S", "s", "T", "t", "T", "t", "T", "t", "T", "t", "U",
    "u", "U", "u", "U", "u", "U", "u", "U", "u", "V", "v", "V", "v", "W", "w", "W", "w", "W", "w", "W", "w", "W", "w",
    "X", "x", "X", "x", "Y", "y", "Z", "z", "Z", "z", "Z", "z", "h", "t", "w", "y", "", "s", "", "", "SS", "", "A",
    "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a", "A", "a",
    "E", "e", "E", "e", "E", "e", "E", "e", "E", "e", "E", "e", "E", "e", "E", "e", "I", "i", "I", "i", "O", "o", "O",
    "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "O", "o", "U", "u",
    "U", "u", "U", "u", "U", "u", "U", "u", "U", "u", "U", "u", "Y", "y", "Y", "y", "Y", "y", "Y", "y", "", "", "",
    "", "", "",
};
/* clang-format on */

/* One character of valid UTF-8; its length. */
static size_t decode(const unsigned char *s, uint32_t *ret)
{
    if (s[0] < 0x80) {
        *ret = s[0];
        return 1;
    }
    size_t n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    *ret = s[0] & (0xFFu >> (n + 1));
    for (size_t i = 1; i < n; i++)
        *ret = *ret << 6 | (s[i] & 0x3Fu);
    return n;
}

/* Typographic signs stand for the plain ones: they divide words. */
static const char *plain(uint32_t c)
{
    if (c >= 0xC0 && c <= 0x24F)
        return latin[c - 0xC0];
    if (c >= 0x1E00 && c <= 0x1EFF)
        return latin_additional[c - 0x1E00];
    if (c == 0x20AC)
        return "EUR";
    if (c == 0xA0 || (c >= 0x2000 && c <= 0x206F))
        return " ";
    return "";
}

size_t name_ascii(const char *s, char *ret, size_t size)
{
    size_t used = 0;
    const unsigned char *p = (const unsigned char *)s;
    while (*p != '\0') {
        uint32_t c;
        size_t n = decode(p, &c);
        char one[2] = {(char)(c < 0x80 ? c : 0), '\0'};
        for (const char *out = c < 0x80 ? one : plain(c); *out != '\0'; out++) {
            if (used + 1 < size)
                ret[used] = *out;
            used++;
        }
        p += n;
    }
    if (size > 0)
        ret[used < size ? used : size - 1] = '\0';
    return used;
}
