/* fuzz_azure.c -- a connection string of any text: an account or an error, never a crash, and no key in the error. */
#include "azure_internal.h"
#include "load_internal.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct azure_options o = {0};
    struct azure_account account = {0};
    struct err err = {0};
    char *text = malloc(size + 1);
    if (text == NULL)
        abort();
    memcpy(text, data, size);
    text[size] = '\0';
    o.connection_string = text;
    o.container = "ingest";
    if (azure_account_new(&o, &account, &err) == ERR_NONE)
        azure_account_done(&account);
    const char *key = strstr(text, "AccountKey=");
    bool is_key = key != NULL && (key == text || key[-1] == ';');
    /* long enough that it is not there by chance, as a part of a name that is told */
    if (is_key && strcspn(key + 11, ";") > 16 && strspn(key + 11, "ABCDEFGHIJKLMNOPabcdefghijklmnop") > 16) {
        char secret[64];
        size_t n = strcspn(key + 11, ";");
        n = n < sizeof secret - 1 ? n : sizeof secret - 1;
        memcpy(secret, key + 11, n);
        secret[n] = '\0';
        if (strstr(err.text, secret) != NULL)
            abort();
    }
    free(text);
    return 0;
}
