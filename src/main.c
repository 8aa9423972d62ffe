/* main.c -- arguments in, exit code out. */
#include "app.h"

int main(int argc, char **argv)
{
    return app_main(argc, argv);
}
