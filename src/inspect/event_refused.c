/*
 * event_refused.c -- events of which a destination refused a row.
 *
 * An event with rows in several tables goes in as a whole or not at all. When one of its rows is refused the others may
 * have been given away already, so the pass is taken back and made again without the event.
 */
#include "event_internal.h"

#include <stdlib.h>
#include <string.h>

void refused_events_done(struct refused_events *refused)
{
    for (size_t i = 0; i < refused->count; i++)
        free(refused->items[i].reason);
    free(refused->items);
    *refused = (struct refused_events){0};
}

const char *event_refused_why(const struct refused_events *refused, uint64_t offset)
{
    if (refused == NULL)
        return NULL;
    /* They are sorted. */
    size_t low = 0, high = refused->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (refused->items[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < refused->count && refused->items[low].offset == offset ? refused->items[low].reason : NULL;
}

bool event_has_siblings(const struct event_rows *r)
{
    if (r->options->refused == NULL || r->options->skip_bad_rows == 0)
        return false;
    for (size_t i = 0; i < r->events->rule_count; i++)
        if (r->events->rules[i].goes_on)
            return true;
    return false;
}

enum err_code event_refuse(struct event_rows *r, uint64_t offset, uint64_t line, const char *reason, struct err *err)
{
    struct refused_events *refused = r->options->refused;
    if (event_refused_why(refused, offset) != NULL)
        return ERR_NONE;
    if (refused->count >= r->options->skip_bad_rows)
        return err_set(err, ERR_INPUT, false, "%llu bad rows, and bad_rows allows %llu; the last one: line %llu: %s",
                       (unsigned long long)(refused->count + 1), (unsigned long long)r->options->skip_bad_rows,
                       (unsigned long long)line, reason);
    if (refused->count == refused->room) {
        size_t room = refused->room > 0 ? 2 * refused->room : 8;
        struct refused_event *items = realloc(refused->items, room * sizeof *items);
        if (items == NULL)
            return err_nomem(err);
        refused->items = items;
        refused->room = room;
    }
    char *copy = strdup(reason);
    if (copy == NULL)
        return err_nomem(err);
    size_t at = refused->count;
    while (at > 0 && refused->items[at - 1].offset > offset)
        at--;
    memmove(&refused->items[at + 1], &refused->items[at], (refused->count - at) * sizeof refused->items[0]);
    refused->items[at] = (struct refused_event){.offset = offset, .reason = copy};
    refused->count++;
    refused->is_new = true;
    return ERR_NONE;
}
