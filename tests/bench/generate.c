/*
 * generate.c -- a CSV file that looks like life: generate ROWS > FILE
 *
 * 11 columns, about 100 bytes a row: numbers, decimals, dates, booleans, quoted commas, doubled quotes, line breaks in
 * quotes, non-ASCII text, empty fields. Deterministic: the same ROWS give the same bytes on every machine.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t seed = 88172645463325252u;

static uint32_t pick(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 16) % below);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"Novák",        "Smith",  "Dvořáková", "O'Brien", "García Márquez", "Müller",
                                        "Björk Åström", "Żółkoś", "Γιώργος",   "Çelik",   "Nguyễn",         "Иванов",
                                        "Tanaka 田中",  "Haddad", "Kowalski",  "Da Silva"};
    static const char *const notes[] = {
        "",
        "ok",
        "\"contains, a comma\"",
        "\"says \"\"hello\"\" twice\"",
        "\"first line\nsecond line\"",
        "\"\"",
        "plain text without anything",
        "\"line\r\nbreak, comma and \"\"quote\"\"\"",
    };
    static const char *const cities[] = {"Praha", "Brno", "\"Washington, DC\"", "Zürich", "São Paulo", "Kraków",
                                         "Oslo",  "東京"};
    uint64_t rows = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
    static char buffer[1 << 20];

    if (rows == 0) {
        fprintf(stderr, "usage: generate ROWS > FILE\n");
        return 2;
    }
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    fputs("id,customer,name,city,amount,quantity,ordered_on,changed_at,active,code,note\n", stdout);
    for (uint64_t i = 0; i < rows; i++) {
        uint32_t month = pick(12) + 1, day = pick(28) + 1;

        printf("%" PRIu64 ",%u,%s,%s,%u.%02u,", i + 1, pick(1000000), names[pick(16)], cities[pick(8)], pick(100000),
               pick(100));
        if (pick(20) != 0)
            printf("%u", pick(500));
        printf(",2024-%02u-%02u,2024-%02u-%02uT%02u:%02u:%02uZ,%s,%05u,%s\n", month, day, month, day, pick(24),
               pick(60), pick(60), pick(2) != 0 ? "true" : "false", pick(100000), notes[pick(8)]);
    }
    if (fflush(stdout) != 0 || ferror(stdout) != 0) {
        perror("generate: write");
        return 1;
    }
    return 0;
}
